"""Definition 3.1 where every rate is measured: the field on both sides of each plateau.

A field g with a derivative at θ changes over a step ε d by O(ε), and
g(θ + ε d) − 2 g(θ) + g(θ − ε d) is o(ε). At a kink of the outputs, as that of ReLU at 0, the first
does not fall with ε; at a kink of their derivative, as that of z |z|, the second falls like ε and
no faster. Automatic differentiation knows of neither: it returns the derivative of one side, or
something between.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.checks.report import Verdict
from dynalyze.models.protocol import Objective
from dynalyze.stages.prediction import StagePrediction

_JUMP_STEPS = (1e-6, 1e-8, 1e-10)  # over the natural size of each product
_BEND_STEPS = (1e-4, 1e-5, 1e-6)
_JUMP = 1e-7  # change of the field, over its natural size, that may be a jump
_BEND = 1e-3  # bend of the field over the step, likewise, that may be a kink of its derivative
_SHRINKS = 0.05  # from one step to the next a change that vanishes shrinks by more than this
_STAYS = 0.4  # and a bend of first order by about 0.1, where rounding does not shrink
_OVER_ROUNDING = 1e3  # how far above the rounding of the field a change must be
_DIRECTIONS = 3  # random directions at each plateau
_MOST_PRODUCTS = 200  # products along which the field is probed at θ = 0


@dataclass(frozen=True)
class _Scales:
    """Natural sizes, by which steps and changes are measured; they bear any units."""

    products: FloatArray  # (p,), of each θ_i
    fields: FloatArray  # (p,), of each g_i


def free_of_kinks(
    objective: Objective, prediction: StagePrediction, rng: np.random.Generator
) -> Verdict:
    """Verdict on one-sided differences of the field, at θ = 0 first and then on each plateau.

    Along random directions, in which every kink through the plateau shows, and at θ = 0 along
    each product too.

    Parameters
    ----------
    objective : Objective
        The loss.
    prediction : StagePrediction
        Its K + 1 plateaus.
    rng : numpy.random.Generator
        Of the random directions.
    """
    p = prediction.theta.shape[1]
    scales = _scales(objective, prediction, rng)
    for k, theta in enumerate(prediction.theta):
        where = "θ = 0" if k == 0 else f"plateau {k}"
        random = rng.choice([-1.0, 1.0], (_DIRECTIONS, p)) * rng.uniform(0.5, 1.0, (_DIRECTIONS, p))
        directions = [(d, "a random direction") for d in random]
        if k == 0:
            chosen = np.arange(p) if p <= _MOST_PRODUCTS else _first(prediction, rng)
            directions += [(np.eye(1, p, i)[0], prediction.product_names[i]) for i in chosen]
        rounding = _rounding(prediction, k, scales)
        for direction, name in directions:
            found = _Probe(objective, theta, direction, scales, rounding).kink()
            if found is not None:
                what, size = found
                return Verdict(
                    None,
                    False,
                    0.0,
                    f"at {where} {what} along {name} (by {size:.1e} of its size): the loss has a "
                    "kink there, as with ReLU, torch.where or |θ|, and rates and times are those "
                    "of one of its sides; use GELU, SiLU or Softplus",
                    {"plateau": float(k), "size": size},
                )
    return Verdict(
        None, True, 1.0, "the field is the same from both sides of θ = 0 and of plateaus"
    )


def _first(prediction: StagePrediction, rng: np.random.Generator) -> IntArray:
    """The products that activate or nearly did, and others drawn at random."""
    runners = prediction.runner_ups[prediction.runner_ups >= 0]
    known = np.unique(np.concatenate([prediction.coordinates, runners]))[:_MOST_PRODUCTS]
    others = np.setdiff1d(np.arange(prediction.theta.shape[1]), known)
    return np.concatenate([known, rng.permutation(others)[: _MOST_PRODUCTS - known.size]])


def _scales(objective: Objective, prediction: StagePrediction, rng: np.random.Generator) -> _Scales:
    """Sizes of θ_i and g_i from the plateaus, the one by the other through the loss's own."""
    p = prediction.theta.shape[1]
    largest = np.abs(prediction.theta).max(axis=0)
    fields = np.abs(prediction.fields).max(axis=0)
    start, drop = abs(float(prediction.losses[0])), float(np.ptp(prediction.losses))
    # What falls by less than the loss's own rounding starts from fields that are rounding too.
    real = drop > np.finfo(float).eps * start
    energy = drop if real else start or 1.0
    units = prediction.zero_fields / (prediction.zero_fields.max(initial=0.0) or 1.0)
    units = np.where(units > 0, units, 1.0)
    if real:
        overall = float((fields / units).max(initial=0.0))
    else:
        overall = energy / _distance(objective, energy, rng.choice([-1.0, 1.0], p) / units)
    sizes = np.where(largest > 0, largest, energy / (overall * units))
    return _Scales(sizes, np.maximum(fields, energy / sizes))


def _distance(objective: Objective, energy: float, direction: FloatArray) -> float:
    """How far from 0 a loss changes by its own size where none of its fields does."""
    with np.errstate(all="ignore"):
        for distance in 10.0 ** np.arange(-30, 31):
            field = objective.field(distance * direction)
            if distance * float(np.abs(field * direction).max()) >= energy:
                return float(distance)
    return 1.0


def _rounding(prediction: StagePrediction, k: int, scales: _Scales) -> float:
    """Rounding of the field on plateau k, seen where it is 0 but for that; relative."""
    active = prediction.theta[k] != 0
    return float((np.abs(prediction.fields[k]) / scales.fields)[active].max(initial=0.0))


class _Probe:
    """The field near a point, along one direction and back."""

    def __init__(
        self,
        objective: Objective,
        theta: FloatArray,
        direction: FloatArray,
        scales: _Scales,
        rounding: float,
    ) -> None:
        self._objective, self._theta, self._scales = objective, theta, scales
        self._direction = direction * scales.products
        self._here = objective.field(theta)
        self._floor = _OVER_ROUNDING * rounding

    def kink(self) -> tuple[str, float] | None:
        """What the field does that no smooth one does, and its size; None if nothing."""
        smallest = _JUMP_STEPS[-1]
        jump = self._jump(smallest)
        if not np.isfinite(jump):
            return f"the field is not a number at {smallest:g} of the natural sizes", jump
        if jump > max(_JUMP, self._floor):
            ratios = _ratios([self._jump(step) for step in _JUMP_STEPS])
            if min(ratios) > _SHRINKS:
                return "the field jumps", jump
        smallest = _BEND_STEPS[-1]
        bend = self._bend(smallest)
        if bend > max(_BEND * smallest, self._floor):
            ratios = _ratios([self._bend(step) for step in _BEND_STEPS])
            if min(ratios) > _SHRINKS and max(ratios) < _STAYS:
                return "the slope of the field jumps", bend / smallest
        return None

    def _jump(self, step: float) -> float:
        """Largest change of the field over one step to either side."""
        return float(np.max([self._size(self._at(s * step) - self._here) for s in (1, -1)]))

    def _bend(self, step: float) -> float:
        """What the changes to the two sides do not cancel."""
        return self._size(self._at(step) - 2 * self._here + self._at(-step))

    def _at(self, step: float) -> FloatArray:
        return self._objective.field(self._theta + step * self._direction)

    def _size(self, change: FloatArray) -> float:
        return float(np.abs(change / self._scales.fields).max())


def _ratios(changes: list[float]) -> list[float]:
    """Each change over that of the next larger step."""
    return [small / large for large, small in pairwise(changes)]
