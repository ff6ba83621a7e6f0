"""What is trained: h(x; θ), its loss, its field g(θ) = −∂L/∂θ, and Hessian columns."""

from dynalyze.models.attention_head import AttentionHead, AttentionHeadObjective
from dynalyze.models.protocol import Model, Objective

__all__ = ["AttentionHead", "AttentionHeadObjective", "Model", "Objective"]
