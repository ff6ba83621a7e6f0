"""What is trained: h(x; θ), its loss, its field g(θ) = −∂L/∂θ, and Hessian columns."""

from dynalyze.models.protocol import Model, Objective

__all__ = ["Model", "Objective"]
