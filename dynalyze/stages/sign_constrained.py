"""Eq. (11) where the loss is quadratic in θ: the limit point without following the flow.

Along ψ no product changes its sign, and L falls to its minimum over those signs. So θ^{k+1} is a
least-squares problem with signs on supp θ^k ∪ {i_k}, which an active-set method started from θ^k
solves: step towards the minimum on the support, stop where a product reaches 0, take it out, and
let it back in if its field points to its old sign again (Lawson & Hanson 1974, chapter 23;
for this model Pesme & Flammarion 2023, arXiv 2304.00488).
"""

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.errors import FlowError
from dynalyze.flow.rest import StationaryPoint
from dynalyze.models.least_squares import SupportMinimizer
from dynalyze.models.protocol import Objective
from dynalyze.stages.transition import NoLimit, Transition, fields_at_rest

_TINY = 1e-6  # part of the largest product, in units of its feature, that may be rounding
_LEAST = 1e-300  # a field that counts as 0 where none does
_MOST_CHANGES = 20  # of the support in one transition, in units of its size


class SignConstrainedLimits:
    """Limit points of a loss that is quadratic in θ.

    Parameters
    ----------
    objective : Objective
        The loss.
    minimizer : SupportMinimizer
        Its minimum on a support.
    """

    def __init__(self, objective: Objective, minimizer: SupportMinimizer) -> None:
        self._objective, self._minimizer = objective, minimizer

    def limit_point(
        self, start: StationaryPoint, coordinate: int, sign: int, negligible: FloatArray
    ) -> Transition | NoLimit:
        """θ^{k+1} of eq. (11): the minimum of L with the signs of θ^k and of the new product.

        Parameters
        ----------
        start : StationaryPoint
            θ^k.
        coordinate, sign : int
            i_k and sgn g_{i_k}(θ^k).
        negligible : ndarray, shape (p,)
            |g_i| that counts as 0 off the support.
        """
        minimizer = self._minimizer
        self._move_to(start)
        theta = start.theta.copy()
        signs = np.sign(theta)
        signs[coordinate] = sign
        try:
            if not minimizer.add(coordinate):
                return NoLimit(
                    "its column depends on those of the active products to rounding, and yet it "
                    "has a field: rescale the features, or leave out dependent ones"
                )
        except FlowError as error:
            return NoLimit(str(error))
        refused: set[int] = set()  # products that rounding alone would bring back
        for _ in range(_MOST_CHANGES * (len(minimizer.support) + 1)):
            refused.update(self._descend(theta, signs))
            value, field = self._objective.value_and_field(theta)
            out = np.flatnonzero((theta == 0) & (signs != 0))
            outward = {int(i): signs[i] * field[i] / max(negligible[i], _LEAST) for i in out}
            back = [i for i in outward if outward[i] > 1 and i not in refused]
            if not back:
                S = np.flatnonzero(theta)
                residual = float(np.abs(field[S]).max(initial=0.0))
                end = StationaryPoint(theta, value, field, S, residual, self._objective)
                return Transition(
                    end, tuple(outward), fields_at_rest(end, tuple(outward), negligible)
                )
            first = max(back, key=outward.__getitem__)
            if not minimizer.add(first):
                refused.add(first)
        return NoLimit(
            f"the least-squares problem with signs was not solved by {_MOST_CHANGES} changes of "
            "the support per product: is what is to be learned below the rounding of the data?"
        )

    def _move_to(self, start: StationaryPoint) -> None:
        """Bring the factorization to the support of θ^k, where the last transition left it."""
        minimizer, wanted = self._minimizer, set(start.support.tolist())
        for i in [i for i in minimizer.support if i not in wanted]:
            minimizer.remove(i)
        for i in sorted(wanted.difference(minimizer.support)):
            minimizer.add(i)

    def _descend(self, theta: FloatArray, signs: FloatArray) -> set[int]:
        """Go to the minimum on the support, in place; products that reach 0 are left behind.

        Returns those that were at 0 and could not leave it.
        """
        minimizer, stuck = self._minimizer, set()
        while minimizer.support:
            S = np.array(minimizer.support)
            goal = minimizer.minimum(theta[S])
            leaving = self._vanishing(goal, signs[S])
            if not leaving.any():
                theta[S] = goal
                break
            here, there = np.abs(theta[S][leaving]), (signs[S] * goal)[leaving]
            # What rounding cannot tell from 0 is 0 at the end of the step.
            reached = np.where(there < 0, here / (here - np.minimum(there, 0)), 1.0)
            step = float(reached.min())
            theta[S] += step * (goal - theta[S])
            for i, size, part in zip(S[leaving].tolist(), here, reached, strict=True):
                if part <= step * (1 + 1e-12):
                    theta[i] = 0.0
                    minimizer.remove(i)
                    if size == 0:
                        stuck.add(i)
        return stuck

    def _vanishing(self, goal: FloatArray, signs: FloatArray) -> BoolArray:
        """Mask of the products that the minimum has beyond 0, or at 0 up to rounding."""
        minimizer = self._minimizer
        vanishing: BoolArray = signs * goal <= 0
        size = np.abs(goal) * minimizer.lengths
        tiny = np.flatnonzero(~vanishing & (size < _TINY * size.max()))
        if tiny.size:
            vanishing[tiny] = np.abs(goal[tiny]) <= minimizer.rounding(goal, tiny)
        return vanishing
