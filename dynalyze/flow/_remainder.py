"""Known values of the field along the path, and the polynomial of the remainder through them.

With frozen Hessian columns H the remainder r = g(θ) + Hθ varies little: it is interpolated as a
polynomial of the arc length s. Its values follow from the stored (θ, g) whatever H is in use, so
that a new H needs no new gradients. Where H was evaluated, dr/ds = 0 is known as well.
"""

from dataclasses import dataclass

import numpy as np

from dynalyze._typing import FloatArray, IntArray


@dataclass(eq=False)
class Sample:
    """The field at one point of the path."""

    s: float  # arc length
    theta: FloatArray  # (p,)
    field: FloatArray  # (p,)


def remeasured(samples: list[Sample], weights: FloatArray, noise: float) -> list[Sample]:
    """Count the arc length between samples, newest first, in other units, by their chords.

    What is not farther than `noise` from a newer one is left out.
    """
    kept = samples[:1]
    for sample in samples[1:]:
        chord = float(np.linalg.norm(weights * (kept[-1].theta - sample.theta)))
        if chord > noise:
            sample.s = kept[-1].s - chord
            kept.append(sample)
    return kept


def newton_form(
    samples: list[Sample], exact: Sample | None, active: IntArray, columns: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Nodes and Newton coefficients of the remainder, in the order of `samples`.

    Parameters
    ----------
    samples : list of Sample
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
    for order in range(1, len(nodes)):
        distance = (nodes[order:] - nodes[:-order])[:, None]
        difference = coefficients[order:] - coefficients[order - 1 : -1]
        # a node of distance 0 is the doubled one, where the derivative is 0
        coefficients[order:] = np.where(
            distance == 0, 0.0, difference / np.where(distance == 0, 1.0, distance)
        )
    return nodes, coefficients


def is_doubled(nodes: FloatArray) -> bool:
    """Whether the newest node counts twice, its Hessian being exact."""
    return len(nodes) > 1 and bool(nodes[0] == nodes[1])


def error_sizes(nodes: FloatArray, newton: FloatArray, order: int, curvature: float) -> FloatArray:
    """Factors E_m of the interpolation error E_m ∏_{i<m} |s − x_i| with m nodes.

    They are the divided differences that one node more shows; `curvature` stands in where no
    more is known than one point.

    Returns
    -------
    ndarray, shape (M + 1,)
        E_m for m = 1 … M ≤ order; the entry 0 means nothing.
    """
    n, doubled = len(nodes), is_doubled(nodes)
    alone = n == 1 + doubled
    sizes = np.zeros(min(n + alone, order + 1))
    sizes[1:n] = np.max(np.abs(newton[1:]), axis=1, initial=0.0)[: len(sizes) - 1]
    if alone:
        sizes[n] = curvature
    if doubled:
        sizes[1] = np.inf  # a constant is right as if by two nodes
    return sizes
