"""Whether the theory applies (Assumptions 4.2–4.4), and whether it held (comparison)."""

from dynalyze.checks.comparison import Comparison, compare
from dynalyze.checks.matching import Inversion, Outcome, Run

__all__ = ["Comparison", "Inversion", "Outcome", "Run", "compare"]
