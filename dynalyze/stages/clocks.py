"""The two clocks of the recursion: the limit α → 0, and a given finite initialization.

Algorithm 1 keeps a log-scale b and a rescaled time T; at finite α the same bookkeeping is done
on the log coordinates z and the flow time t themselves, from their true initial values and with
the drift during transitions included, which turns jump times that are right to leading order
into jump times that are right to o(1).
"""

from typing import Protocol

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.rest import StationaryPoint, scaled_spectrum
from dynalyze.stages.equations import (
    Activation,
    active_log_scale,
    initial_log_scale,
    log_scale,
    time_until_active,
)
from dynalyze.stages.orbit import Orbit
from dynalyze.stages.transition import Transition


class Clock(Protocol):
    """Says when each product would activate, and is moved on from plateau to plateau."""

    def waits(self, field: FloatArray, active: BoolArray, negligible: FloatArray) -> FloatArray:
        """Time until each product activates on the present plateau, shape (p,)."""

    def advance(
        self,
        start: StationaryPoint,
        active: BoolArray,
        winner: Activation,
        transition: Transition,
    ) -> tuple[float, FloatArray]:
        """Move on to the next plateau; return the time of the transition's onset, and b there."""


class LeadingOrderClock:
    """Eqs. (8)–(10): log-scales b and rescaled time T, exact as α → 0."""

    def __init__(self, n_products: int) -> None:
        self.b = initial_log_scale(n_products)  # (p,)
        self.time = 0.0

    def waits(self, field: FloatArray, active: BoolArray, negligible: FloatArray) -> FloatArray:
        """Δ_k(i) of eq. (8), rescaled time, shape (p,)."""
        return time_until_active(self.b, field, active, negligible=negligible)

    def advance(
        self,
        start: StationaryPoint,
        active: BoolArray,
        winner: Activation,
        transition: Transition,
    ) -> tuple[float, FloatArray]:
        """T_{k+1} of eq. (9) and b^{k+1} of eq. (10): here a transition takes no time."""
        self.b = log_scale(self.b, start.field, active, winner.wait)
        self.b[winner.coordinate] = active_log_scale(winner.sign)
        self.time += winner.wait
        return self.time, self.b


class FiniteScaleClock:
    """Log coordinates z and flow time t from a given initialization, exact to o(1).

    Parameters
    ----------
    init : Initialization
        The weights at t = 0.
    visible_size : ndarray, shape (p,)
        Size |θ_i| at which competing products are compared: small, and well above what the
        inactive ones have.
    """

    def __init__(self, init: Initialization, visible_size: FloatArray) -> None:
        self._log_abs_c, self._log_inverse_alpha = init.log_abs_c, init.log_inverse_alpha
        self._log_visible = np.log(visible_size)  # (p,)
        self.z = init.z0.copy()  # (p,)
        self.time = 0.0
        self.overlaps: list[float] = []  # of each transition so far, see `_overlap`

    def waits(self, field: FloatArray, active: BoolArray, negligible: FloatArray) -> FloatArray:
        """Flow time until |θ_i| reaches the visible size, shape (p,); negative if just past."""
        waits = np.full(field.shape, np.inf)
        moving = ~active & (np.abs(field) > negligible)
        goal = np.sign(field) * self._size_to_z(self._log_visible)
        waits[moving] = (goal[moving] - self.z[moving]) / field[moving]
        return waits

    def advance(
        self,
        start: StationaryPoint,
        active: BoolArray,
        winner: Activation,
        transition: Transition,
    ) -> tuple[float, FloatArray]:
        """Drift over the plateau to the orbit's onset, then along it: the others by ∫ g(ψ) ds."""
        # Over the plateau the drift is linear, until the winner has the visible size.
        self.z = np.where(active, self.z, self.z + start.field * winner.wait)
        self.time += winner.wait
        orbit, j = transition.orbit, winner.coordinate
        assert orbit is not None  # with an initialization, every transition is followed
        lead = (
            winner.sign * self._size_to_z(float(orbit.log_size[0]))[j] - self.z[j]
        ) / start.field[j]
        passive = np.ones(self.z.size, dtype=bool)
        passive[start.support] = False
        passive[j] = False
        self.z[passive] += lead * start.field[passive]
        # Products that are visible from the start compete before any plateau: nothing is known.
        visible_before = self.time + lead < 0
        self.overlaps.append(
            1.0 if visible_before else self._overlap(passive, transition.end, orbit)
        )
        self.z[passive] += orbit.z_end[passive]
        # The balanced chart has z = ½ s log|θ|; what left goes on from there in the exact one.
        offset = self._size_to_z(0.0)
        for i in transition.departed:
            sign = winner.sign if i == j else np.sign(start.theta[i])
            self.z[i] = orbit.z_end[i] + sign * offset[i]
        onset_time = self.time + lead
        self.time = onset_time + float(orbit.times[-1])
        b = np.clip(1 - self.z / self._log_inverse_alpha, 0.0, 2.0)
        b[transition.end.support] = 1 - np.sign(transition.end.theta[transition.end.support])
        return onset_time, b

    def _overlap(self, passive: BoolArray, end: StationaryPoint, orbit: Orbit) -> float:
        """Largest fraction by which a passive product, at its largest on the orbit, moves it.

        θ_i moves the active products by −H_AA⁻¹ H_Ai θ_i, to first order. The orbit leaves that
        out, so this bounds what the log coordinates miss in the transition.
        """
        others = passive.copy()
        others[end.support] = False
        if not end.support.size or not others.any():
            return 0.0
        shift = scaled_spectrum(end.hessian, end.support).solve(end.hessian[others].T)
        coupling = np.abs(shift / end.theta[end.support][:, None]).max(axis=0)
        z = self.z[others]
        size = np.maximum(np.abs(z + orbit.z_lowest[others]), np.abs(z + orbit.z_highest[others]))
        with np.errstate(divide="ignore"):
            log_overlap = np.log(coupling) + 2 * size + self._log_abs_c[others] - np.log(4)
        return float(np.exp(min(log_overlap.max(), 0.0)))

    def _size_to_z(self, log_size: float | FloatArray) -> FloatArray:
        """|z| at which |θ| = e^{log_size}, for |θ| far above |c|; shape (p,)."""
        return 0.5 * (log_size + np.log(4) - self._log_abs_c)
