"""A comparison as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynalyze.stages.table import aligned

if TYPE_CHECKING:
    from dynalyze._typing import BoolArray, FloatArray
    from dynalyze.checks.comparison import Comparison
    from dynalyze.checks.matching import Inversion

_MOST_LISTED = 10


def summary(comparison: Comparison) -> str:
    """Table of the stages, then the worst errors, inversions and what did not match."""
    header = [
        "stage",
        "product",
        "measured t",
        "predicted t",
        "error",
        "in plateaus",
        "leading order",
        "its error",
        "separated",
        "off plateau",
        "",
    ]
    prediction = comparison.prediction
    rows = []
    for k in range(comparison.n_stages):
        i = int(prediction.coordinates[k])
        matched = not np.isnan(comparison.measured[k])
        rows.append(
            [
                str(k + 1),
                f"{'+' if prediction.signs[k] > 0 else '−'} {prediction.name(i)}",
                _number(comparison.measured[k], ".6g"),
                _number(comparison.predicted[k], ".6g"),
                _number(comparison.relative_errors[k], ".1e"),
                _number(abs(comparison.errors[k] / comparison.plateau_lengths[k]), ".1e"),
                _number(comparison.leading[k], ".6g"),
                _number(comparison.relative_leading_errors[k], ".1e"),
                "yes" if comparison.separated[k] else "no",
                _number(comparison.relative_plateau_distances[k + 1], ".1e"),
                "" if matched else str(comparison.outcomes[k]),
            ]
        )
    threshold = comparison.threshold
    size = "5% of its plateau" if threshold is None else f"{threshold:g}"
    lines = [
        f"α = 1e{comparison.log10_alpha:g}; a jump is |θ| = {size}; measured times are "
        f"{comparison.clock};",
        "errors are relative, and in lengths of the plateau before; off plateau: distance from θ^k "
        "in its middle, over max|θ^k|.",
        "",
        *aligned(header, rows, left={1, 10}),
        "",
        _worst("separated stages", comparison, comparison.separated),
        _worst("all stages", comparison, np.ones(comparison.n_stages, dtype=bool)),
    ]
    lines += _listed("order inverted", [_inversion(comparison, i) for i in comparison.inversions])
    lines += _listed("missing", [str(k + 1) for k in comparison.missing], separator=", ")
    lines += _listed("not predicted for α → 0", _extra(comparison))
    return "\n".join(lines)


def _extra(comparison: Comparison) -> list[str]:
    finite = comparison.prediction.finite
    foreseen = set()
    if finite is not None:
        foreseen = set(zip(finite.coordinates.tolist(), finite.signs.tolist(), strict=True))
    entries = []
    for t, i, sign in zip(
        comparison.extra_times.tolist(),
        comparison.extra_coordinates.tolist(),
        comparison.extra_signs.tolist(),
        strict=True,
    ):
        entry = f"{'+' if sign > 0 else '−'} {comparison.prediction.name(i)} at t = {t:.6g}"
        entries.append(entry + ("; foreseen at this α" if (i, sign) in foreseen else ""))
    return entries


def _worst(what: str, comparison: Comparison, mask: BoolArray) -> str:
    matched = mask & ~np.isnan(comparison.measured)
    head = f"{what}: {np.count_nonzero(matched)} of {np.count_nonzero(mask)} matched"
    if not matched.any():
        return head
    parts = [f"leading order off by at most {_top(comparison.relative_leading_errors[matched])}"]
    if not np.isnan(comparison.relative_errors[matched]).all():
        parts.insert(0, f"jump times off by at most {_top(comparison.relative_errors[matched])}")
    return f"{head}; {', '.join(parts)}"


def _top(values: FloatArray) -> str:
    return f"{np.nanmax(values):.1e} (median {np.nanmedian(values):.1e})"


def _inversion(comparison: Comparison, inversion: Inversion) -> str:
    foreseen = {True: "; foreseen at this α", False: "; not foreseen at this α", None: ""}
    return (
        f"stage {inversion.second + 1} came {inversion.measured_lead:.3g} before stage "
        f"{inversion.first + 1}: predicted {inversion.gap_flow:.3g} after it, where its "
        f"transition takes {inversion.duration:.3g}{foreseen[inversion.foreseen]}"
    )


def _listed(what: str, entries: list[str], separator: str = "\n  ") -> list[str]:
    if not entries:
        return []
    more = [f"and {len(entries) - _MOST_LISTED} more"] if len(entries) > _MOST_LISTED else []
    start = "\n  " if separator.startswith("\n") else " "
    return [f"{what}:{start}{separator.join(entries[:_MOST_LISTED] + more)}"]


def _number(value: float, form: str) -> str:
    return "—" if np.isnan(value) else format(value, form)
