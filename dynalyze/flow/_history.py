"""What is known of the remainder from the steps made so far, and how far it can be extrapolated."""

import numpy as np

from dynalyze._typing import FloatArray
from dynalyze.flow._frozen_hessian import FrozenHessian
from dynalyze.flow._remainder import Polynomial, Sample, error_sizes, is_doubled, newton_form

_EXTRAPOLATION = 2.0  # largest, in units of the span of the newest nodes
_FIRST_ARC = 1e-3  # in natural lengths
_SHORTEST_ARC = 1e-6  # that is expected again, in units of the largest |θ|
_ROUNDING = 1e-14  # of the field, in units of its own size
_FADING = 0.1  # how fast a large first size is forgotten


class History:
    """Samples of the path, newest first, and what steps from a single one have shown.

    Parameters
    ----------
    sample : Sample
        The start.
    rate : float
        Guess of |r'| and |r''|/2 of the remainder r.
    order : int
        Highest number of nodes of a polynomial.

    Attributes
    ----------
    samples : list of Sample
        Newest first.
    """

    def __init__(self, sample: Sample, rate: float, order: int) -> None:
        self.samples = [sample]
        self._order = order
        self._first_sizes = np.full(2, rate)  # E_1 and E_2 where one point is all that is known
        self._last_arc = _FIRST_ARC

    @property
    def newest(self) -> Sample:
        """The newest sample."""
        return self.samples[0]

    def forget(self) -> None:
        """Keep the newest sample only."""
        self.samples = self.samples[:1]

    def distrust(self, n_nodes: int, factor: float) -> None:
        """Take a step from a single point, of one or two nodes, to be that much more curved."""
        self._first_sizes[n_nodes - 1] *= factor

    def extrapolation(
        self, hessian: FrozenHessian, s: float, distrust: FloatArray
    ) -> tuple[Polynomial, FloatArray]:
        """Polynomial to go on with from arc length s, and the sizes E_m of its error by nodes."""
        newest = self.newest
        samples = self.samples[: self._order + 1]
        nodes, newton = newton_form(samples, hessian.exact, hessian.active, hessian.columns)
        sizes = error_sizes(nodes, newton, self._order, self._first_sizes)
        # within bounds whose powers are finite
        scale = float(np.clip(hessian.size(newest), 1e-30, 1e30))
        floor = _ROUNDING * float(np.max(np.abs(newton[0]))) / scale ** np.arange(len(sizes))
        sizes = np.clip(sizes, floor, 1e200) * distrust[: len(sizes)]
        reach = np.cumprod(np.abs(s + self._last_arc - nodes[: len(sizes) - 1]))
        terms = min(int(np.argmin(sizes[1:] * reach)) + 1, len(nodes))
        # An extrapolated polynomial may feed on itself: what moves s moves P(s).
        span = float(np.ptp(nodes[: min(terms, 3)]))
        s_last = np.inf if is_doubled(nodes) else max(s, nodes[0]) + _EXTRAPOLATION * span
        return Polynomial(nodes, newton[:terms], s_last), sizes

    def append(
        self, samples: list[Sample], hessian: FrozenHessian, arc: float, size: float
    ) -> None:
        """Take over the samples after a step of an arc length, and the size E_m that it showed."""
        if len(self.samples) == 1 and size:
            nodes = int(self.newest is hessian.exact)
            self._first_sizes[nodes] = max(size, _FADING * self._first_sizes[nodes])
        self._last_arc = max(arc, _SHORTEST_ARC * hessian.size(samples[0]))
        self.samples = samples[: self._order + 2]

    def remeasure(self, weights: FloatArray, noise: float) -> None:
        """Count the arc length between samples in other units, by their chords.

        What is not farther than `noise` from a newer one is left out.
        """
        kept = self.samples[:1]
        for sample in self.samples[1:]:
            chord = float(np.linalg.norm(weights * (kept[-1].theta - sample.theta)))
            if chord > noise:
                sample.s = kept[-1].s - chord
                kept.append(sample)
        self.samples = kept
