"""Known values of the field along the path, and the polynomial of the remainder through them.

With frozen Hessian columns H the remainder r = g(θ) + Hθ varies little: it is interpolated as a
polynomial of the arc length s. Its values follow from the stored (θ, g) whatever H is in use, so
that a new H needs no new gradients. Where H was evaluated, dr/ds = 0 is known as well.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.compiled import njit

ROUNDING = 1e-14  # of a remainder, in units of its own size
_EXTRAPOLATION = 2.0  # largest, in units of the span of the newest nodes


@dataclass(frozen=True, eq=False)
class Sample:
    """The field at one point of the path."""

    s: float  # arc length
    theta: FloatArray  # (p,)
    field: FloatArray  # (p,)


class Polynomial(NamedTuple):
    """r ≈ Σ_m newton[m] ∏_{i<m} (s − nodes[i]), constant from s_last on."""

    nodes: FloatArray  # (n,)
    newton: FloatArray  # (m ≤ n, p)
    s_last: float


def newton_form(
    samples: tuple[Sample, ...], exact: Sample | None, active: IntArray, columns: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Nodes and Newton coefficients of the remainder, in the order of `samples`.

    Parameters
    ----------
    samples : tuple of Sample
        Newest first.
    exact : Sample, optional
        The one at which H is exact; its node counts twice.
    active : ndarray of int, shape (k,)
        Coordinates with Hessian columns.
    columns : ndarray, shape (p, k)
        H.

    Returns
    -------
    nodes, coefficients : ndarray, shapes (n,), (n, p)
        r ≈ Σ_m coefficients[m] ∏_{i<m} (s − nodes[i]).
    """
    doubled = [q for sample in samples for q in ([sample] * 2 if sample is exact else [sample])]
    nodes = np.array([q.s for q in doubled])
    theta = np.array([q.theta[active] for q in doubled])
    coefficients = np.array([q.field for q in doubled]) + theta @ columns.T
    _divide(nodes, coefficients)
    return nodes, coefficients


@njit(cache=True, error_model="numpy")
def _divide(nodes: FloatArray, values: FloatArray) -> None:
    """Turn values at the nodes into divided differences, in place."""
    n, p = values.shape
    for order in range(1, n):
        for m in range(n - 1, order - 1, -1):
            distance = nodes[m] - nodes[m - order]
            for i in range(p):
                difference = values[m, i] - values[m - 1, i]
                # What is no more than rounding would be taken for a slope; and a node of
                # distance 0 is the doubled one, where the derivative is 0.
                rounding = order == 1 and abs(difference) <= ROUNDING * abs(values[m, i])
                values[m, i] = 0.0 if rounding or distance == 0 else difference / distance


def is_doubled(nodes: FloatArray) -> bool:
    """Whether the newest node counts twice, its Hessian being exact."""
    return len(nodes) > 1 and bool(nodes[0] == nodes[1])


def error_sizes(
    nodes: FloatArray, newton: FloatArray, order: int, rate: float, length: float
) -> FloatArray:
    """Factors E_m of the interpolation error E_m ∏_{i<m} |s − x_i| with m nodes.

    They are the divided differences that one node more shows. With all n nodes that is not known:
    the remainder is then taken to vary over the distance that the nodes span. Where all nodes are
    of one point it is taken to vary by `rate` over `length`.

    Returns
    -------
    ndarray, shape (M + 1,)
        E_m for m = 1 … M ≤ order; the entry 0 means nothing.
    """
    n, doubled = len(nodes), is_doubled(nodes)
    sizes = np.zeros(min(n, order) + 1)
    for m in range(1, min(n, order + 1)):
        sizes[m] = np.max(np.abs(newton[m]))
    if n == 1 + doubled:
        sizes[n] = rate / length**n
    elif n <= order:
        sizes[n] = sizes[n - 1] / abs(nodes[0] - nodes[-1])
    if doubled:
        sizes[1] = np.inf  # a constant is right as if by two nodes
    return sizes


def extrapolation(
    nodes: FloatArray, newton: FloatArray, sizes: FloatArray, s: float, arc: float
) -> Polynomial:
    """Polynomial to go on with from arc length s, where a step of the length `arc` is expected."""
    reach = np.cumprod(np.abs(s + arc - nodes[: len(sizes) - 1]))
    terms = min(int(np.argmin(sizes[1:] * reach)) + 1, len(nodes))
    # An extrapolated polynomial may feed on itself: what moves s moves P(s).
    span = float(np.ptp(nodes[: min(terms, 3)]))
    s_last = np.inf if is_doubled(nodes) else max(s, nodes[0]) + _EXTRAPOLATION * span
    return Polynomial(nodes, newton[:terms], s_last)
