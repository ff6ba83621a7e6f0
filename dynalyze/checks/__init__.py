"""Whether the theory applies (Assumptions 4.2–4.4), and whether it held (comparison)."""

from dynalyze.checks.assumptions import check_assumptions
from dynalyze.checks.comparison import Comparison, compare
from dynalyze.checks.matching import Inversion, Outcome, Run
from dynalyze.checks.perturbation import Perturbation, perturb
from dynalyze.checks.report import AssumptionReport, Verdict

__all__ = [
    "AssumptionReport",
    "Comparison",
    "Inversion",
    "Outcome",
    "Perturbation",
    "Run",
    "Verdict",
    "check_assumptions",
    "compare",
    "perturb",
]
