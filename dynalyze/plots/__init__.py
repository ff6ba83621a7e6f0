"""Plots of results. Every function returns the Axes that it drew on; none shows a figure."""
