"""The paper's own check of Assumptions 4.3 and 4.4: perturb a run, and see whether it returns."""

from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import ArrayLike, BoolArray, FloatArray, IntArray
from dynalyze._core.interrupts import delivering, held
from dynalyze._core.status import Status
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.simulate import simulate
from dynalyze.flow.trajectory import Trajectory
from dynalyze.models.data import as_positive_int
from dynalyze.models.protocol import Objective

_WINDOW = 1 / 160  # of the run: 1000 of the paper's 160,000 epochs
_SAMPLES = 400
_SD = {False: 0.05, True: 0.01}  # of the noise on all active, on newly active weights


@dataclass(frozen=True, eq=False)
class Perturbation:
    """One perturbed continuation of a run, beside the run itself, on n times."""

    time: float  # flow time of the perturbation
    perturbed: IntArray  # products whose weights u and v were perturbed
    t: FloatArray  # (n,), flow times from `time` to the end of the window
    theta: FloatArray  # (n, p), products after the perturbation
    reference: FloatArray  # (n, p), products of the unperturbed run
    rtol: float  # distance that counts as returned, relative to the largest product
    log_inverse_alpha: float  # flow time of one unit of rescaled time

    @property
    def t_rescaled(self) -> FloatArray:
        """The times `t` over log(1/α), shape (n,)."""
        return self.t / self.log_inverse_alpha

    @property
    def distances(self) -> FloatArray:
        """max|θ − θ_reference| at the times `t`, shape (n,)."""
        return np.abs(self.theta - self.reference).max(axis=1)

    @property
    def final_distance(self) -> float:
        """Distance at the end of the window, relative to the reference's largest product."""
        return float(self.distances[-1] / np.abs(self.reference[-1]).max())

    @property
    def returned(self) -> bool:
        """Whether the perturbed run is back on the reference at the end of the window."""
        return self.final_distance <= self.rtol


@dataclass(frozen=True, eq=False)
class _PerturbedStart(Initialization):
    """A state whose conserved u² − v² is known in logarithms, not as a difference of weights."""

    # Of u0 and v0 only the signs and which is larger are used.
    log_abs_c: FloatArray  # (p,)
    z0: FloatArray  # (p,)

    def __post_init__(self) -> None:
        """Leave the checks of weights that are not used."""


@held()
@delivering()
def perturb(
    trajectory: Trajectory,
    *,
    times: ArrayLike | None = None,
    n_times: int = 5,
    newly_active: bool = False,
    sd: float | None = None,
    threshold: float = 1e-5,
    window: float | None = None,
    rtol: float = 0.05,
    tol: float = 1e-6,
    objective: Objective | None = None,
    rng: np.random.Generator | int | None = None,
) -> tuple[Perturbation, ...]:
    """Perturb the weights of a run at some times, run on, and measure the return to it.

    The protocol of arXiv 2306.07042 for Assumption 4.3 (all active weights, standard deviation
    0.05) and, with ``newly_active=True``, for Assumption 4.4 (weights that have just become
    visible, 0.01). Its perturbed runs are followed for 1000 of 160,000 epochs.

    Parameters
    ----------
    trajectory : Trajectory
        A simulation, long enough for the windows.
    times : array_like, optional
        Flow times of the perturbations. By default `n_times` random ones: with `newly_active`
        among those at which some product's weights first exceed `threshold`.
    newly_active : bool
        Perturb the product whose weights exceeded `threshold` last, instead of all that do.
    sd : float, optional
        Standard deviation of the independent Gaussian noise on each weight u_i, v_i; by default
        0.05, or 0.01 with `newly_active`.
    threshold : float
        Size of the weights from which a product counts as active: |θ| > threshold².
    window : float, optional
        Flow time to follow each perturbed run; by default 1/160 of the whole run, as the paper.
    rtol : float
        Distance from the unperturbed run, relative to its largest product, that counts as
        returned.
    tol : float
        Tolerance of the integrator, as in `simulate`.
    objective : Objective, optional
        The loss, for a trajectory that was loaded without it.
    rng : numpy.random.Generator or int, optional
        Source of the times and of the noise.

    Returns
    -------
    tuple of Perturbation

    Raises
    ------
    InvalidInputError
        If an argument cannot be used, or a window reaches beyond the end of the run.
    """
    objective = trajectory.objective if objective is None else objective
    if objective is None:
        raise InvalidInputError(
            "the trajectory was loaded without its objective: give objective=model.bind(data)"
        )
    sd = _SD[newly_active] if sd is None else sd
    end = float(trajectory.t[-1])
    window = _WINDOW * end if window is None else window
    for name, value in (("sd", sd), ("threshold", threshold), ("window", window)):
        if not 0 < value < np.inf:
            raise InvalidInputError(f"{name}={value!r} must be positive and finite")
    as_positive_int(n_times, "n_times")
    generator = np.random.default_rng(rng)
    arrivals = _arrivals(trajectory, threshold)
    at = _times(arrivals, end - window, times, n_times, newly_active, generator)
    found = []
    for time in at:
        # A product that arrives at this very time counts, whatever the rounding.
        chosen = np.abs(trajectory.theta_at(time)) > threshold**2 * (1 - 1e-6)
        if newly_active:
            chosen = _newest(arrivals, time, chosen)
        start = _perturbed(trajectory, time, chosen, sd, generator)
        run = simulate(objective, init=start, until=window, tol=tol)
        if run.status is Status.INTERRUPTED:  # which a simulation returns, and this does not
            raise KeyboardInterrupt
        t = np.linspace(0.0, run.t[-1], _SAMPLES)
        found.append(
            Perturbation(
                time=time,
                perturbed=np.flatnonzero(chosen),
                t=time + t,
                theta=run.theta_at(t),
                reference=trajectory.theta_at(time + t),
                rtol=rtol,
                log_inverse_alpha=trajectory.init.log_inverse_alpha,
            )
        )
    return tuple(found)


def _arrivals(trajectory: Trajectory, threshold: float) -> list[tuple[float, int]]:
    """Flow times at which products become active, with the product."""
    times, coordinates, directions = trajectory.crossings(threshold**2)
    grown = directions > 0
    return list(zip(times[grown].tolist(), coordinates[grown].tolist(), strict=True))


def _times(
    arrivals: list[tuple[float, int]],
    last: float,
    times: ArrayLike | None,
    n_times: int,
    newly_active: bool,
    rng: np.random.Generator,
) -> list[float]:
    first = min((time for time, _ in arrivals), default=np.inf)
    if times is not None:
        given = np.atleast_1d(np.asarray(times, dtype=float))
        outside = ~((given >= first) & (given <= last))
        if outside.any():
            raise InvalidInputError(
                f"times contains {given[outside][0]:.6g}: a perturbation needs an active product, "
                f"from {first:.6g} on, and a window before the end of the run, to {last:.6g}"
            )
        return [float(time) for time in given]
    usable = [time for time, _ in arrivals if time <= last]
    if not usable:
        raise InvalidInputError(
            f"no product becomes active before {last:.6g}, where the last window begins: simulate "
            "further, or give a shorter window"
        )
    if newly_active:
        chosen = rng.choice(usable, min(n_times, len(usable)), replace=False)
    else:
        chosen = rng.uniform(first, last, n_times)
    return [float(time) for time in np.sort(chosen)]


def _newest(arrivals: list[tuple[float, int]], time: float, active: BoolArray) -> BoolArray:
    newest = np.zeros_like(active)
    # An arrival is found to rounding: one at the very time asked about counts.
    newest[[i for arrival, i in arrivals if arrival <= time * (1 + 1e-9)][-1]] = True
    return newest


def _perturbed(
    trajectory: Trajectory,
    time: float,
    chosen: BoolArray,
    sd: float,
    rng: np.random.Generator,
) -> _PerturbedStart:
    """State at `time` with noise on the chosen weights; the others keep their z and log|c|."""
    init = trajectory.init
    z = trajectory.z_at(time)
    u, v = init.weights_at(z)
    noise_u, noise_v = sd * rng.standard_normal((2, z.size))
    u, v = u + np.where(chosen, noise_u, 0.0), v + np.where(chosen, noise_v, 0.0)
    log_abs_c, new_z = init.log_abs_c.copy(), z.copy()
    log_w = np.log(np.abs(u[chosen] + v[chosen]))
    log_other = np.log(np.abs(u[chosen] - v[chosen]))
    log_abs_c[chosen] = log_w + log_other
    new_z[chosen] = 0.5 * (log_w - log_other)
    return _PerturbedStart(
        np.where(chosen, u, init.u0),
        np.where(chosen, v, init.v0),
        log10_alpha=init.log10_alpha,
        log_abs_c=log_abs_c,
        z0=new_z,
    )
