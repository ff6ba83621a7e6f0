"""Whether the theory applies (Assumptions 4.2–4.4), and whether it held (comparison)."""

from dynalyze.checks.matching import MeasuredRun
from dynalyze.checks.perturbation import Perturbation, perturb

__all__ = ["MeasuredRun", "Perturbation", "perturb"]
