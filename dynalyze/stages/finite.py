"""The stages from one given initialization: jump times to o(1) instead of o(log 1/α)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.stages.algorithm import Stage

# Sum of overlaps up to which stages count as separated. Measured on heads and on diabetes from
# 1e-8 to 1e-100: at 0.02 no jump time is off by more than 5e-4, at 0.05 by 2%.
_SEPARATED = 0.02
_JUMP = 0.05  # of the value that a product jumps to: the size at which its jump is called
UNITS = ("flow", "rescaled", "steps")


@dataclass(frozen=True, eq=False)
class FiniteScaleStages:
    """Order, onset and orbit of each of M stages from a given initialization.

    M and the order may differ from the limit α → 0 where products nearly tie.
    """

    init: Initialization  # what the stages start from
    coordinates: IntArray  # (M,), product that activates
    signs: IntArray  # (M,), ±1
    onsets: FloatArray  # (M,), flow time at which each orbit starts
    overlaps: FloatArray  # (M,), fraction by which other products disturb each orbit, at most 1
    orbit_starts: IntArray  # (M+1,), where each orbit starts in the two arrays below
    orbit_times: FloatArray  # flow time since the onset, all orbits after one another
    orbit_log_sizes: FloatArray  # log|θ| of the activating product at those times

    @classmethod
    def from_stages(cls, stages: list[Stage], overlaps: list[float], init: Initialization) -> Self:
        """Collect the stages that the recursion found on the clock of an initialization."""
        orbits = [s.transition.orbit for s in stages if s.transition.orbit is not None]
        empty = [np.empty(0)]
        return cls(
            init=init,
            coordinates=np.array([s.activation.coordinate for s in stages], dtype=np.int64),
            signs=np.array([s.activation.sign for s in stages], dtype=np.int64),
            onsets=np.array([s.onset_time for s in stages], dtype=float),
            overlaps=np.array(overlaps, dtype=float),
            orbit_starts=np.cumsum([0, *(orbit.times.size for orbit in orbits)]),
            orbit_times=np.concatenate(empty + [orbit.times for orbit in orbits]),
            orbit_log_sizes=np.concatenate(empty + [orbit.log_size for orbit in orbits]),
        )

    @property
    def log10_alpha(self) -> float:
        """Scale of the initialization."""
        return self.init.log10_alpha

    @property
    def n_separated(self) -> int:
        """Number of stages before the first whose transition overlaps another one.

        An overlap shifts the log coordinates of everything that follows by up to its size, and
        jump times by that over |g|; these add up, and are small for the stages counted here.
        """
        return int(np.count_nonzero(np.cumsum(self.overlaps) <= _SEPARATED))

    def jumps_of(
        self, coordinates: IntArray, signs: IntArray, sizes: FloatArray
    ) -> tuple[FloatArray, tuple[str, ...]]:
        """Flow time at which each given activation takes |θ| through its size; arrays (K,).

        Before the onset log|θ| is linear in time. Where there is no such time it is NaN, and the
        second result says why.
        """
        times = np.full(len(coordinates), np.nan)
        notes = [""] * len(coordinates)
        for k, m in enumerate(self.stages_of(coordinates, signs)):
            if m < 0:
                notes[k] = "the stage does not occur from this initialization"
                continue
            part = slice(self.orbit_starts[m], self.orbit_starts[m + 1])
            log_size = float(np.log(sizes[k]))
            time = self.onsets[m] + _first_crossing(
                self.orbit_times[part], self.orbit_log_sizes[part], log_size
            )
            if np.isnan(time):
                notes[k] = f"|θ| stays below {sizes[k]:.3g} in its transition"
            elif time < 0:
                notes[k] = f"|θ| is above {sizes[k]:.3g} from the start, or as good as"
            else:
                times[k] = time
        return times, tuple(notes)

    def stages_of(self, coordinates: IntArray, signs: IntArray) -> IntArray:
        """Stage of each given activation, matched by product, sign and occurrence; shape (K,).

        −1 for those that do not occur from this initialization.
        """
        known: dict[tuple[int, int], list[int]] = {}
        for stage, mine in enumerate(zip(self.coordinates, self.signs, strict=True)):
            known.setdefault((int(mine[0]), int(mine[1])), []).append(stage)
        matched = []
        for coordinate, sign in zip(coordinates, signs, strict=True):
            occurrences = known.get((int(coordinate), int(sign)), [])
            matched.append(occurrences.pop(0) if occurrences else -1)
        return np.array(matched, dtype=np.int64)

    def units_per_flow_time(self, unit: str, lr: float | None = None) -> float:
        """Length in flow time of one unit of ``"flow"``, ``"rescaled"`` or ``"steps"``."""
        if unit not in UNITS:
            raise InvalidInputError(
                f"unit={unit!r} is not known: choose one of {', '.join(map(repr, UNITS))}"
            )
        if lr is not None and unit != "steps":
            raise InvalidInputError(
                f"lr={lr!r} was given for unit={unit!r}: use unit='steps' to count steps of that "
                "size, or leave it out"
            )
        if unit == "flow":
            return 1.0
        if unit == "rescaled":
            return -self.log10_alpha * float(np.log(10))
        if lr is None or not 0 < lr < np.inf:
            raise InvalidInputError(
                f"lr={lr!r} must be a positive number for unit='steps': the learning rate of the "
                "gradient descent whose steps are counted"
            )
        return lr

    def to_arrays(self) -> dict[str, FloatArray | IntArray]:
        """All arrays by name, for saving beside `log10_alpha`."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return own | {"u0": self.init.u0, "v0": self.init.v0}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray | IntArray], log10_alpha: float) -> Self:
        """Inverse of `to_arrays`."""
        own: dict[str, Any] = dict(arrays)
        init = Initialization(own.pop("u0"), own.pop("v0"), log10_alpha=log10_alpha)
        return cls(init=init, **own)


def _first_crossing(times: FloatArray, log_size: FloatArray, log_threshold: float) -> float:
    from scipy.interpolate import CubicSpline  # takes 0.3 s to import

    size = CubicSpline(times, log_size)
    if log_threshold <= log_size[0]:
        return float(times[0] + (log_threshold - log_size[0]) / size(times[0], nu=1))
    roots = size.solve(log_threshold, extrapolate=False)
    return float(roots[0]) if roots.size else np.nan


def jump_sizes(theta: FloatArray, coordinates: IntArray, zero_fields: FloatArray) -> FloatArray:
    """Size |θ_i| at which a jump of each product is called by default, shape (p,).

    5% of the value that the product jumps to, the smallest if it does so more than once; of
    products that never activate 5% of the largest value of all, in the units of their fields.

    Parameters
    ----------
    theta : ndarray, shape (K+1, p)
        Products on each plateau.
    coordinates : ndarray of int, shape (K,)
        Products that activate.
    zero_fields : ndarray, shape (p,)
        |g_i| that counts as 0, which goes with the units of the fields.
    """
    units = zero_fields / (zero_fields.max(initial=0.0) or 1.0)
    units = np.where(units > 0, units, 1.0)
    sizes = np.asarray((np.abs(theta * units).max(initial=0.0) or 1.0) / units)
    values = np.abs(theta[1:][np.arange(coordinates.size), coordinates])
    jumped = values > 0  # a product may leave in the transition that it starts
    sizes[coordinates[jumped]] = np.inf
    np.minimum.at(sizes, coordinates[jumped], values[jumped])
    return _JUMP * sizes
