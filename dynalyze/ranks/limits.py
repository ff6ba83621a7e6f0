"""Where the flow of full weights comes to rest after a step of rank one."""

import numpy as np
from scipy.integrate import solve_ivp

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze.flow.rest import Spectrum
from dynalyze.models.torch.objective import TorchObjective

_FLOWED = (1e-3, 1e-5, 1e-7)  # of σ_1(G): growth rates left when Newton's method is tried
_STATIONARY = 1e-9  # of σ_1(G) at the start: gradients left at a stationary point
_MOST_NEWTON = 20
_MOVED = 0.05  # most that Newton's method may move a product, relative to it
_LONGEST = 1e4  # in units of 1/σ_1(G): flow time after which no limit is expected any more


def end_of_flow(
    objective: TorchObjective, start: FloatArray, new: BoolArray, *, rate: float, scale: float
) -> FloatArray | None:
    """End of the gradient flow from `start`: integrated, then certified by Newton's method.

    Parameters
    ----------
    objective : TorchObjective
        The loss as a function of the factors' entries.
    start : ndarray, shape (n,)
        Entries of the factors, those of the new column small.
    new : ndarray of bool, shape (n,)
        Which of them are the new column's.
    rate : float
        σ_1(G), the rate at which the new column grows in flow time.
    scale : float
        σ_1(G) at the start, the unit of the gradients that count as zero.

    Returns
    -------
    ndarray, shape (n,), or None
        None if the flow comes to no stationary point.
    """
    every = np.arange(start.size)
    y = start
    for level in _FLOWED:

        def unsettled(t: float, y: FloatArray, level: float = level) -> float:
            # Near the saddle the field is small too, but not beside the column that leaves it.
            left = np.abs(objective.field(y)).max() / np.abs(y[new]).max()
            return float(left) - level * rate

        unsettled.terminal = True  # type: ignore[attr-defined]  # solve_ivp is told so
        flow = solve_ivp(
            lambda t, y: objective.field(y),
            (0.0, _LONGEST / rate),
            y,
            method="BDF",
            jac=lambda t, y: -objective.hessian_columns(y, every),
            rtol=1e-7,
            atol=1e-10,
            events=unsettled,
        )
        if flow.status != 1:
            return None
        y = flow.y[:, -1]
        end = _newton(objective, y, _STATIONARY * scale)
        if end is not None:
            return end
    return None


def _newton(objective: TorchObjective, near: FloatArray, tolerance: float) -> FloatArray | None:
    """Stationary point beside `near`, if there is one that is a minimum but for its symmetry.

    A Q, B Q^{−T} have the same product for every invertible Q: along these directions the Hessian
    is 0, up to what is left of the gradient, and no step is made.
    """
    y = near
    for _ in range(_MOST_NEWTON):
        field = objective.field(y)
        if np.abs(field).max() <= tolerance:
            return y
        columns = objective.hessian_columns(y, np.arange(y.size))
        spectrum = Spectrum(np.ones(y.size), *np.linalg.eigh(columns))
        flat = 10 * np.abs(field).max() / np.abs(spectrum.eigenvalues).max()
        if np.any(spectrum.eigenvalues[spectrum.regular(flat)] < 0):
            return None
        y = y + spectrum.solve(field, flat)
        if np.abs(y - near).max() > _MOVED * np.abs(near).max():
            return None
    return None
