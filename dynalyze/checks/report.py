"""What `check_assumptions` returns: a verdict per assumption and stage, with its margin."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynalyze._core.plain import plain


@dataclass(frozen=True)
class Verdict:
    """Whether one condition holds, by how much, and what that means for the user."""

    stage: int | None  # from 1; None for a condition on the whole problem
    passed: bool
    margin: float  # the larger the safer; its meaning is in the message
    message: str
    values: Mapping[str, float] = field(default_factory=dict)  # numbers behind it, by name


@dataclass(frozen=True)
class AssumptionReport:
    """The paper's assumptions, checked on one problem (arXiv 2306.07042, sections 2 and 4).

    Stage k has one entry in each of the last three fields. Where a prediction ended early, the
    stage that it could not complete has entries too, in the assumptions that it breaks.
    """

    regularity: tuple[Verdict, ...]  # 2.1 and Definition 3.1: finite, smooth
    initialization: Verdict | None  # 4.2: |u_i(0)| ≠ |v_i(0)|; None where none was given
    growth: Verdict  # some product grows from θ = 0 on the clock log(1/α)
    finite_limit: Verdict  # every transition ends at a finite point
    nondegenerate: tuple[
        Verdict, ...
    ]  # 4.2 {4.3}: unique next product, no field of 0 after leaving
    strict_minimum: tuple[Verdict, ...]  # 4.3 {4.4}
    noise_robust: tuple[Verdict, ...]  # 4.4 {4.5}; empty if not asked for

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts."""
        first = () if self.initialization is None else (self.initialization,)
        return (
            *self.regularity,
            *first,
            self.growth,
            self.finite_limit,
            *self.nondegenerate,
            *self.strict_minimum,
            *self.noise_robust,
        )

    @property
    def passed(self) -> bool:
        """Whether every condition holds, and of one stage at least: of none nothing was tested."""
        return self.n_stages_tested > 0 and all(verdict.passed for verdict in self.verdicts)

    @property
    def n_stages_tested(self) -> int:
        """Number of stages of which Assumptions 4.2 to 4.4 were tested."""
        return max((v.stage for v in self._staged if v.stage is not None), default=0)

    @property
    def _staged(self) -> tuple[Verdict, ...]:
        return (*self.nondegenerate, *self.strict_minimum, *self.noise_robust)

    @property
    def n_stages_passed(self) -> int:
        """Number of stages before the first at which some assumption fails."""
        staged = self._staged
        failed = [v.stage for v in staged if v.stage is not None and not v.passed]
        known = [v.stage for v in self.nondegenerate if v.stage is not None]
        return min(failed) - 1 if failed else max(known, default=0)

    def to_dict(self) -> dict[str, Any]:
        """All verdicts, and what follows from them, ready for JSON; None for what is not finite."""
        names = ("passed", "n_stages_tested", "n_stages_passed")
        return dict(plain(self)) | {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """Return all verdicts as text, the failed ones marked."""
        groups = (
            ("Regularity (2.1, Definition 3.1)", self.regularity),
            (
                "Initialization (4.2)",
                () if self.initialization is None else (self.initialization,),
            ),
            ("Growth from 0", (self.growth,)),
            ("Finite limits", (self.finite_limit,)),
            ("Nondegeneracy (4.2)", self.nondegenerate),
            ("Strict minima (4.3)", self.strict_minimum),
            ("Noise-robustness (4.4)", self.noise_robust),
        )
        lines = []
        for title, verdicts in groups:
            if not verdicts:
                continue
            lines.append(title)
            for verdict in verdicts:
                where = "" if verdict.stage is None else f"stage {verdict.stage}: "
                lines.append(
                    f"  {'passed' if verdict.passed else 'FAILED'}  {where}{verdict.message}"
                )
        failed = sum(not verdict.passed for verdict in self.verdicts)
        lines += [
            "",
            "nothing was tested: the prediction has no stage"
            if self.n_stages_tested == 0
            else "all assumptions hold"
            if self.passed
            else f"{failed} of {len(self.verdicts)} conditions fail; all hold up to stage "
            f"{self.n_stages_passed}",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()
