"""A comparison as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray
from dynalyze._core.text import aligned
from dynalyze.checks.matching import Inversion, Outcome

_MOST_LISTED = 10


def comparison_table(
    columns: Mapping[str, Any],
    *,
    log10_alpha: float,
    threshold: float | None,
    clock: str,
    inversions: Sequence[Inversion],
    missing: Sequence[int],
    extra: Sequence[str],
) -> str:
    """Table of the stages, then the worst errors, inversions and what did not match.

    Parameters
    ----------
    columns : mapping
        Those of `Comparison.to_dataframe`, of length K.
    log10_alpha, threshold, clock
        What the jumps were measured at, and by.
    inversions : sequence of Inversion
        Stages that came in another order.
    missing : sequence of int
        Stages, from 0, that did not come.
    extra : sequence of str
        Jumps that no stage predicts.
    """
    forms = {
        "measured": ("measured t", ".6g"),
        "predicted": ("predicted t", ".6g"),
        "relative_error": ("error", ".1e"),
        "error_in_plateaus": ("in plateaus", ".1e"),
        "leading": ("leading order", ".6g"),
        "relative_leading_error": ("its error", ".1e"),
        "relative_plateau_distance": ("off plateau", ".1e"),
    }
    rows = []
    for k, (sign, product) in enumerate(zip(columns["sign"], columns["product"], strict=True)):
        numbers = [_number(abs(columns[name][k]), form) for name, (_, form) in forms.items()]
        outcome = str(columns["outcome"][k])
        rows.append(
            [
                f"{k + 1}",
                f"{'+' if sign > 0 else '−'} {product}",
                *numbers[:-1],
                "yes" if columns["separated"][k] else "no",
                numbers[-1],
                "" if outcome == Outcome.MATCHED else outcome,
            ]
        )
    titles = [title for title, _ in forms.values()]
    header = ["stage", "product", *titles[:-1], "separated", titles[-1], ""]
    size = "5% of its plateau" if threshold is None else f"{threshold:g}"
    separated = np.asarray(columns["separated"], dtype=bool)
    lines = [
        f"α = 1e{log10_alpha:g}; a jump is |θ| = {size}; measured times are {clock};",
        "errors are relative, and in lengths of the plateau before; off plateau: distance from θ^k "
        "in its middle, over max|θ^k|.",
        "",
        *aligned(header, rows, left={1, 10}),
        "",
        _worst("separated stages", columns, separated),
        _worst("all stages", columns, np.ones_like(separated)),
    ]
    lines += _listed("order inverted", [_inversion(inversion) for inversion in inversions])
    lines += _listed("missing", [str(k + 1) for k in missing], separator=", ")
    lines += _listed("not predicted for α → 0", extra)
    return "\n".join(lines)


def _worst(what: str, columns: Mapping[str, Any], mask: BoolArray) -> str:
    matched = mask & ~np.isnan(columns["measured"])
    head = f"{what}: {np.count_nonzero(matched)} of {np.count_nonzero(mask)} matched"
    if not matched.any():
        return head
    parts = [f"leading order off by at most {_top(columns['relative_leading_error'][matched])}"]
    errors = columns["relative_error"][matched]
    if not np.isnan(errors).all():
        parts.insert(0, f"jump times off by at most {_top(errors)}")
    return f"{head}; {', '.join(parts)}"


def _top(values: FloatArray) -> str:
    return f"{np.nanmax(values):.1e} (median {np.nanmedian(values):.1e})"


def _inversion(inversion: Inversion) -> str:
    foreseen = {True: "; foreseen at this α", False: "; not foreseen at this α", None: ""}
    return (
        f"stage {inversion.second + 1} came {inversion.measured_lead:.3g} before stage "
        f"{inversion.first + 1}: predicted {inversion.gap_flow:.3g} after it, where its "
        f"transition takes {inversion.duration:.3g}{foreseen[inversion.foreseen]}"
    )


def _listed(what: str, entries: Sequence[str], separator: str = "\n  ") -> list[str]:
    if not entries:
        return []
    more = [f"and {len(entries) - _MOST_LISTED} more"] if len(entries) > _MOST_LISTED else []
    start = "\n  " if separator.startswith("\n") else " "
    return [f"{what}:{start}{separator.join([*entries[:_MOST_LISTED], *more])}"]


def _number(value: float, form: str) -> str:
    return "—" if np.isnan(value) else format(value, form)
