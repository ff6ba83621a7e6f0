"""Predict, simulate and track the stages in which networks with product weights learn."""

__version__ = "0.1.0"
