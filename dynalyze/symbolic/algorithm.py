"""Algorithm 1 of arXiv 2306.07042 in exact arithmetic."""

from collections.abc import Iterable, Mapping
from typing import Any

import sympy as sp

from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError, NoLimitPointError, UnsolvedBranchError
from dynalyze.symbolic.decisions import Decisions, tidy
from dynalyze.symbolic.equations import activation, log_scale, time_until_active
from dynalyze.symbolic.problem import ExpectedLoss
from dynalyze.symbolic.result import SymbolicStages
from dynalyze.symbolic.stationary import LimitPoint, limit_point


class _Recursion:
    """State after stage k: T_k, b^k, θ^k and the history so far."""

    def __init__(self, problem: ExpectedLoss, decisions: Decisions) -> None:
        p = len(problem.products)
        self.problem, self.decisions = problem, decisions
        self.theta: list[tuple[sp.Expr, ...]] = [(sp.S.Zero,) * p]
        self.b: list[tuple[sp.Expr, ...]] = [(sp.S.One,) * p]  # b^0 = 1: w(0) is of order α
        self.signs = [0] * p  # of the support
        self.losses = [tidy(problem.at(problem.loss, self.theta[0]))]
        self.times: list[sp.Expr] = []
        self.coordinates: list[int] = []
        self.new_signs: list[sp.Expr] = []
        self.departed: list[tuple[int, ...]] = []
        self.branches: list[str] = []

    def race(self) -> tuple[tuple[int, ...], sp.Expr, list[sp.Expr], list[int]]:
        """Winners (9), their wait, the field and its signs outside the support."""
        theta, b = self.theta[-1], self.b[-1]
        field, signs, waits = [], [], []
        for i, entry in enumerate(self.problem.field):
            active = self.signs[i] != 0
            g = sp.S.Zero if active else tidy(self.problem.at(entry, theta))
            sign = 0 if active else self.decisions.sign(g)
            field.append(g)
            signs.append(sign)
            waits.append(time_until_active(b[i], g, sign))
        winners, wait = activation(waits, self.decisions)
        return winners, wait, field, signs

    def advance(
        self, winner: int, wait: sp.Expr, field: list[sp.Expr], sign: int, point: LimitPoint
    ) -> None:
        old = [*self.signs]
        old[winner] = sign
        self.b.append(tuple(log_scale(b, g, wait) for b, g in zip(self.b[-1], field, strict=True)))
        self.signs = [s if value != 0 else 0 for s, value in zip(old, point.theta, strict=True)]
        self.theta.append(point.theta)
        self.losses.append(tidy(self.problem.at(self.problem.loss, point.theta)))
        self.times.append(self.next_time(wait))
        self.coordinates.append(winner)
        self.new_signs.append(sp.Integer(sign))
        self.departed.append(tuple(i for i, s in enumerate(old) if s and not self.signs[i]))
        self.branches.append(_describe(point))

    def next_time(self, wait: sp.Expr) -> sp.Expr:
        return tidy((self.times[-1] if self.times else 0) + wait)

    def result(self, status: Status, message: str, **rest: Any) -> SymbolicStages:
        return SymbolicStages(
            self.problem.products,
            tuple(self.times),
            tuple(self.coordinates),
            tuple(self.new_signs),
            tuple(self.theta),
            tuple(self.b),
            tuple(self.losses),
            tuple(self.departed),
            status,
            message,
            tuple(self.decisions.conditions),
            tuple(self.branches),
            **rest,
        )


def stages(
    problem: ExpectedLoss,
    *,
    at: Mapping[sp.Symbol, Any] | None = None,
    max_stages: int = 100,
    max_seconds: float | None = 30.0,
) -> SymbolicStages:
    """Run Algorithm 1 exactly.

    Parameters
    ----------
    problem : ExpectedLoss
        The loss with its expectation taken, from `diagonal_linear`, `attention_head` or
        `mean_loss`, or an expression of your own.
    at : mapping of Symbol to number, optional
        Reference point: values of the parameters that say which branch to follow, wherever a
        sign or an order is not decided by assumptions. The result is still an expression in the
        parameters, and lists the conditions under which it holds.
    max_stages : int
        Stop after so many stages.
    max_seconds : float, optional
        Seconds that SymPy may take to solve for one stationary point; None for no limit.

    Returns
    -------
    SymbolicStages
        ``status`` is ``"converged"`` if no coordinate grows any more; ``"tie"`` if two coordinates
        become active at once and ``"degenerate"`` if one leaves with field 0 (in both, Assumption
        4.2 fails); ``"no_limit"`` if the flow does not come to rest; ``"unsolved"`` if it does,
        but SymPy finds no formula for where, and then ``equations`` has what must vanish there;
        ``"max_stages"`` after so many. The stages found before are returned in every case.

    Raises
    ------
    InvalidInputError
        If a decision needs a parameter that `at` does not fix.

    Examples
    --------
    >>> from dynalyze.symbolic import diagonal_linear
    >>> result = stages(diagonal_linear([[2, 1], [1, 2]], [3, 1]))
    >>> result.times, result.theta[-1], result.success
    ((1/3, 3), (5/3, -1/3), True)
    """
    if max_stages < 0 or (max_seconds is not None and not max_seconds > 0):
        raise InvalidInputError(
            f"max_stages={max_stages} must not be negative, and max_seconds={max_seconds} must be "
            "positive"
        )
    run = _Recursion(problem, Decisions(at))
    while True:
        winners, wait, field, signs = run.race()
        resting = _names(problem, [i for i in (run.departed or [()])[-1] if not signs[i]])
        if not winners:
            note = f" {resting} left with field 0: Assumption 4.2 fails there." if resting else ""
            return run.result(
                Status.CONVERGED, f"No coordinate outside the support grows any more.{note}"
            )
        following = {"next_time": run.next_time(wait), "next_coordinates": winners}
        names = _names(problem, winners)
        if resting:
            return run.result(
                Status.DEGENERATE,
                f"{resting} left the support at stage {len(run.times)} with field 0: Assumption "
                "4.2 fails, and higher orders decide.",
                **following,
            )
        if len(winners) > 1:
            return run.result(
                Status.TIE,
                f"At stage {len(run.times) + 1} the coordinates {names} become active at once: "
                "Assumption 4.2 fails, and the initialization decides.",
                **following,
            )
        if len(run.times) == max_stages:
            return run.result(
                Status.MAX_STAGES, f"Stopped after max_stages={max_stages}.", **following
            )
        (winner,) = winners
        starting = [*run.signs]
        starting[winner] = signs[winner]
        place = f"At stage {len(run.times) + 1}, after {names} becomes active, "
        try:
            point = limit_point(
                problem, run.theta[-1], starting, run.decisions, max_seconds=max_seconds
            )
        except NoLimitPointError as error:
            return run.result(Status.NO_LIMIT, f"{place}{error}.", **following)
        except UnsolvedBranchError as error:
            end = ", ".join(
                f"{x} = {value:.12g}"
                for x, value in zip(problem.products, error.theta, strict=True)
            )
            return run.result(
                Status.UNSOLVED,
                f"{place}the flow rests at {end}, but {error}: `equations` are left to solve; try "
                "a larger max_seconds, or other data.",
                equations=error.equations,
                **following,
            )
        run.advance(winner, wait, field, signs[winner], point)


def _names(problem: ExpectedLoss, coordinates: Iterable[int]) -> str:
    return ", ".join(str(problem.products[i]) for i in coordinates)


def _describe(point: LimitPoint) -> str:
    if point.method == "least squares":
        return "the sign-constrained least-squares solution, exact"
    return (
        f"the one of {point.n_candidates} stationary points that the flow, integrated "
        f"numerically at the reference point, reaches (to {point.distance:.1e})"
    )
