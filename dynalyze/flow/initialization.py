"""Initial weights (u, v)(0) = α (u0, v0) of the flow, for any α down to 1e-1000 and beyond."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynalyze._core.arrays import ArrayLike, FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.flow.coordinates import LogCoordinates
from dynalyze.models.data import as_generator

_LOG_10 = float(np.log(10))
_LOWEST_LOG10_ALPHA = -1e290
_MOST_NAMED = 10  # coordinates listed in an error


@dataclass(frozen=True, eq=False)
class Initialization:
    """Initial weights α (u0, v0) of a network with products u ⊙ v (arXiv 2306.07042, section 3).

    The scale α is kept as its logarithm and may lie far below the range of floats. What the
    flow needs from it, log|c| with c = u(0)² − v(0)² (conserved, eq. (5)) and the log
    coordinates z(0), follows without forming α.

    Parameters
    ----------
    u0, v0 : array_like, shape (p,)
        Weights in units of α; |u0_i| ≠ |v0_i| for every i. The theory takes u0_i + v0_i > 0;
        where it is negative the flow of (−u_i, −v_i), which has the same products, is followed,
        and `weights_at` returns the signs given here.
    log10_alpha : float
        log10(α), negative.

    Raises
    ------
    InvalidInputError
        If the shapes differ, a weight is not finite, |u0_i| = |v0_i| for some i, or
        `log10_alpha` is not a negative number, or below -1e290.

    Examples
    --------
    >>> init = Initialization([1.0, -0.3], [0.5, 0.2], log10_alpha=-1000)
    >>> round(float(init.log_inverse_alpha), 6)
    2302.585093
    """

    u0: FloatArray  # (p,), in units of α
    v0: FloatArray  # (p,), in units of α
    log10_alpha: float = field(kw_only=True)

    def __post_init__(self) -> None:
        u0, v0 = _weights("u0", self.u0), _weights("v0", self.v0)
        if u0.shape != v0.shape:
            raise InvalidInputError(
                f"u0 has shape {u0.shape} and v0 has shape {v0.shape}: "
                "give both one entry for each product"
            )
        balanced = np.flatnonzero(np.abs(u0) == np.abs(v0))
        if balanced.size:
            names = ", ".join(map(str, balanced[:_MOST_NAMED]))
            more = f" and {balanced.size - _MOST_NAMED} more" if balanced.size > _MOST_NAMED else ""
            raise InvalidInputError(
                f"|u0| = |v0| at coordinates {names}{more}: the theory needs |u_i(0)| ≠ |v_i(0)| "
                "(Assumption 4.2), as weights drawn at random have. Change one of the two slightly."
            )
        log10_alpha = float(self.log10_alpha)
        if not -np.inf < log10_alpha < 0:
            raise InvalidInputError(
                f"log10_alpha={log10_alpha} must be negative and finite: it is log10 of the scale "
                "α < 1 of the initial weights; log10_alpha=-8 stands for α = 1e-8"
            )
        if log10_alpha < _LOWEST_LOG10_ALPHA:
            raise InvalidInputError(
                f"log10_alpha={log10_alpha:g} must be at least {_LOWEST_LOG10_ALPHA:g}: times are "
                "log(1/α) times numbers of order 1 and beyond, and would overflow"
            )
        object.__setattr__(self, "u0", u0)
        object.__setattr__(self, "v0", v0)
        object.__setattr__(self, "log10_alpha", log10_alpha)

    @classmethod
    def gaussian(
        cls,
        n_products: int,
        *,
        log10_alpha: float,
        rng: np.random.Generator | int | None = None,
        scale: float = 1.0,
    ) -> "Initialization":
        """Draw u0 and v0 independently from N(0, scale²).

        Parameters
        ----------
        n_products : int
            Number p of products.
        log10_alpha : float
            log10(α), negative.
        rng : numpy.random.Generator or int, optional
            Source of randomness, or its seed.
        scale : float, optional
            Standard deviation of the entries of u0 and v0.
        """
        generator = as_generator(rng)
        u0, v0 = scale * generator.standard_normal((2, n_products))
        return cls(u0, v0, log10_alpha=log10_alpha)

    @classmethod
    def from_weights(
        cls, u: ArrayLike, v: ArrayLike, *, log10_alpha: float | None = None
    ) -> "Initialization":
        """Initialization with the given weights, such as those of a network before training.

        Parameters
        ----------
        u, v : array_like or torch.Tensor, shape (p,)
            The weights themselves, α already in them.
        log10_alpha : float, optional
            The scale to call α. Only rescaled times depend on it: the weights do not. By
            default α is the root mean square of all entries of `u` and `v`.

        Raises
        ------
        InvalidInputError
            As for the class, and if the root mean square is 0 or not below 1.
        """
        weights_u, weights_v = _weights("u", u), _weights("v", v)
        if log10_alpha is None:
            everything = np.concatenate([weights_u, weights_v])
            largest = np.max(np.abs(everything), initial=0.0)
            if largest == 0:
                raise InvalidInputError(
                    "all of u and v are 0, where the flow never moves: give the weights "
                    "before training, which are small but not 0"
                )
            rms = float(largest * np.sqrt(np.mean((everything / largest) ** 2)))
            if rms >= 1:
                raise InvalidInputError(
                    f"the root mean square of u and v is {rms:.3g}, and α must be below 1: the "
                    "theory is about small initial weights. Give weights from before training, "
                    "or name the scale yourself by log10_alpha="
                )
            log10_alpha = float(np.log10(rms))
        # In two factors: 10^-log10_alpha alone may overflow where u / α does not.
        with np.errstate(over="ignore"):
            half = np.power(10.0, -log10_alpha / 2)
            u0, v0 = weights_u * half * half, weights_v * half * half
        if not np.all(np.isfinite([u0, v0])):
            raise InvalidInputError(
                f"log10_alpha={log10_alpha} is too far below the size of u and v, whose "
                "quotients by α overflow: leave it out, or name a scale nearer to theirs"
            )
        return cls(u0, v0, log10_alpha=log10_alpha)

    def to_dict(self) -> dict[str, Any]:
        """What `Initialization(**entries)` takes to make the same again, ready for JSON."""
        return {"u0": self.u0.tolist(), "v0": self.v0.tolist(), "log10_alpha": self.log10_alpha}

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return len(self.u0)

    @property
    def log_inverse_alpha(self) -> float:
        """log(1/α), natural: the flow time that one unit of rescaled time stands for."""
        return -self.log10_alpha * _LOG_10

    @cached_property
    def log_abs_c(self) -> FloatArray:
        """log|c|, c = u(0)² − v(0)²; shape (p,)."""
        log_c0 = np.log(np.abs(self.u0 + self.v0)) + np.log(np.abs(self.u0 - self.v0))
        return log_c0 + 2 * self.log10_alpha * _LOG_10

    @cached_property
    def z0(self) -> FloatArray:
        """Log coordinates at t = 0, which do not depend on α; shape (p,)."""
        return 0.5 * (np.log(np.abs(self.u0 + self.v0)) - np.log(np.abs(self.u0 - self.v0)))

    @cached_property
    def coordinates(self) -> LogCoordinates:
        """The chart θ(z) of the flow from this initialization."""
        return LogCoordinates(self.log_abs_c)

    @property
    def theta0(self) -> FloatArray:
        """Products at t = 0, α² u0 ⊙ v0, which may underflow to 0; shape (p,)."""
        return self.coordinates.theta(self.z0)

    def weights_at(self, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weights (u, v) at log coordinates z, by eq. (6).

        Parameters
        ----------
        z : ndarray, shape (p,) or (..., p)
            Log coordinates.

        Returns
        -------
        u, v : ndarray, shape of z
            The weights, with the signs of the initialization given; what is below the range
            of floats is 0.
        """
        # w = √|c| e^z and w̃ = c/w give √|c| cosh z for the larger at the start, √|c| sinh z
        # for the smaller: no difference of nearly equal numbers is taken.
        size = np.abs(z)
        exponent = size + 0.5 * self.log_abs_c - np.log(2)
        larger = np.exp(exponent + np.log1p(np.exp(-2 * size)))
        smaller = -np.sign(z) * np.exp(exponent) * np.expm1(-2 * size)
        u_is_larger = np.abs(self.u0) > np.abs(self.v0)
        flip = np.sign(self.u0 + self.v0)
        u = flip * np.where(u_is_larger, larger, smaller)
        v = flip * np.where(u_is_larger, smaller, larger)
        return u, v


def _weights(name: str, values: Any) -> FloatArray:
    """One-dimensional array of floats from a sequence, an array or a torch tensor."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.array(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise InvalidInputError(
            f"{name} has shape {array.shape}: give a vector with one entry for each product"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise InvalidInputError(
            f"{name}[{bad[0]}] = {array[bad[0]]}: weights must be finite numbers"
        )
    array.flags.writeable = False
    return array


def check_initialization(init: object, n_products: int) -> None:
    """Refuse what is no `Initialization`, such as the number α alone."""
    if not isinstance(init, Initialization):
        raise InvalidInputError(
            f"init={init!r} must be an Initialization: give "
            f"Initialization.gaussian({n_products}, log10_alpha=-8, rng=0), or your own weights"
        )
