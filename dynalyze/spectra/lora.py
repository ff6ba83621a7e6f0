"""Ranks for LoRA adapters, from the change that full training makes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import InvalidInputError, MissingDependencyError
from dynalyze.spectra.attention import find_sources, model_lookup
from dynalyze.spectra.recognition import display_name, natural_order, sources_from_names
from dynalyze.spectra.sources import Lookup, StoredWeight, stored_weights
from dynalyze.spectra.stored_weights import Checkpoint, open_checkpoint, shapes_of, stored_in_use
from dynalyze.spectra.tracker import Tracker

if TYPE_CHECKING:
    from peft import LoraConfig

Weights = nn.Module | Checkpoint
# The forward pass of nn.MultiheadAttention reads these weights without calling a module.
_NOT_MODULES = ("in_proj_weight", "q_proj_weight")


@dataclass(frozen=True)
class LoraRanks:
    """Rank per module that keeps a stated share of its change; M modules."""

    modules: tuple[str, ...]  # M names
    ranks: IntArray  # (M,), 0 where a module did not change
    kept: FloatArray  # (M,), share of ‖ΔW‖_F² that the rank keeps; 1 where nothing changed
    shapes: tuple[tuple[int, int], ...]  # M pairs (out, in)
    share: float  # what was asked for
    fan_in_fan_out: bool  # whether the weights are stored (in, out), as Conv1D does

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Mapping of module to rank, as peft's ``LoraConfig(rank_pattern=...)`` takes it.

        A key of peft is a regular expression for the end of a module's name: these are anchored at
        the start, so that ``encoder.q_proj`` does not get the rank of ``q_proj``.
        """
        ranks = zip(self.modules, self.ranks, strict=True)
        return {f"^{re.escape(name)}": int(rank) for name, rank in ranks if rank > 0}

    @property
    def n_parameters(self) -> int:
        """Number of parameters of adapters with these ranks."""
        sizes = [sum(shape) for shape in self.shapes]
        return int(np.dot(self.ranks, sizes))

    def config(self, *, alpha_over_rank: float = 1.0, **options: Any) -> "LoraConfig":
        """Return a peft configuration that adapts the modules that changed, with these ranks.

        Parameters
        ----------
        alpha_over_rank : float
            Scale of every adapter; peft divides alpha by each module's own rank, so alpha is set
            per module.
        **options
            Other arguments of ``peft.LoraConfig``, such as ``lora_dropout``.

        Raises
        ------
        MissingDependencyError
            If peft is not installed.
        InvalidInputError
            If no module changed.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingDependencyError("config needs peft: pip install peft.") from error
        pattern = self.rank_pattern
        if not pattern:
            raise InvalidInputError("no module changed: there is nothing to adapt. Train longer.")
        most = max(pattern.values())
        arguments: dict[str, Any] = {
            "r": most,
            "lora_alpha": alpha_over_rank * most,
            # As a list they would be ends of names, and adapt modules never asked for.
            "target_modules": "|".join(pattern),
            "rank_pattern": pattern,
            "alpha_pattern": {name: alpha_over_rank * rank for name, rank in pattern.items()},
            "fan_in_fan_out": self.fan_in_fan_out,
        }
        return LoraConfig(**{**arguments, **options})

    def summary(self) -> str:
        """Return the table of ranks as text."""
        width = max(len("module"), *(len(name) for name in self.modules))
        lines = [f"{'module':<{width}}{'rank':>6}{'of':>6}{'kept':>9}"]
        lines += [
            f"{name:<{width}}{rank:>6}{min(shape):>6}{kept:>9.1%}"
            for name, rank, shape, kept in zip(
                self.modules, self.ranks, self.shapes, self.kept, strict=True
            )
        ]
        full = sum(rows * columns for rows, columns in self.shapes)
        lines.append(
            f"{self.n_parameters} adapter parameters for {full} weights, to keep {self.share:.0%} "
            "of each change"
        )
        return "\n".join(lines)


def suggest_lora_ranks(
    before: Tracker | Weights,
    after: Weights | None = None,
    *,
    share: float = 0.9,
    max_rank: int | None = None,
    modules: str | Sequence[str] | None = None,
    model: nn.Module | None = None,
) -> LoraRanks:
    """Suggest the rank per module that keeps a share of the change that training made.

    For each weight the change ΔW = W − W(0) is decomposed, and the rank is the smallest r whose r
    largest singular values hold `share` of ‖ΔW‖_F². By Eckart and Young no adapter of that rank
    comes closer to ΔW.

    What this cannot tell: LoRA trains under its constraint, and need not end at the best
    approximation of what full training finds; a share of the norm is not a share of the
    improvement of the loss; rank grows in steps, so a short probe run suggests less than a long
    run needs; and the ranks belong to this task, learning rate and optimizer. Take them as where
    to spend a budget of parameters, and check the loss.

    Parameters
    ----------
    before : Tracker, model, state dict or path of a checkpoint
        A tracker, whose start and present are compared; or the weights at the start.
    after : model, state dict or path of a checkpoint, optional
        The weights at the end, unless `before` is a tracker.
    share : float
        Share of ‖ΔW‖_F² to keep, in (0, 1].
    max_rank : int, optional
        Cap on every rank; `LoraRanks.kept` says what is left.
    modules : str or sequence of str, optional
        Patterns of module names, such as ``"*.mlp.*"``; by default the attention projections.
        Every two-dimensional ``weight`` that matches counts.
    model : torch.nn.Module, optional
        Where both ends are saved weights, a model to find the attention projections in, if their
        names do not tell.

    Raises
    ------
    InvalidInputError
        If no module is found, the ends differ in architecture, or an option is out of range.
    """
    if not 0 < share <= 1:
        raise InvalidInputError(f"share={share!r} must lie in (0, 1]")
    if max_rank is not None and max_rank < 1:
        raise InvalidInputError(f"max_rank={max_rank!r} must be at least 1")
    ends = _ends(before, after)
    weights = _named(ends[0], modules) if modules else _projections(ends, model)
    if not weights:
        raise InvalidInputError(
            f"no module that LoRA can adapt was found (modules={modules!r}): the weights of "
            "nn.MultiheadAttention are none. Name linear modules in modules=."
        )
    lookups = [_lookup(end, weights) for end in ends]
    names, ranks, kept, shapes = [], [], [], []
    for weight in weights:
        first, last = (weight.whole(lookup, adapted=False) for lookup in lookups)
        if first.shape != last.shape:
            raise InvalidInputError(
                f"{weight.name} has shape {tuple(first.shape)} before and {tuple(last.shape)} "
                "after: the architecture changed. Give the start and the end of one training."
            )
        change = last.double() - first.to(last.device).double()
        if not bool(change.isfinite().all()):
            raise InvalidInputError(
                f"{weight.name} holds NaN or infinite values: training has diverged (lower the "
                "learning rate), or the checkpoint is damaged."
            )
        energy = np.cumsum(torch.linalg.svdvals(change).cpu().numpy() ** 2)
        rank, held = 0, 1.0
        if energy[-1] > 0:
            # Rounding must not ask for one more rank than an exact share needs.
            rank = int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1
            rank = min(rank, max_rank or rank)
            held = float(energy[rank - 1] / energy[-1])
        names.append(_module_name(weight))
        ranks.append(rank)
        kept.append(held)
        shapes.append((int(change.shape[0]), int(change.shape[1])))
    return LoraRanks(
        modules=tuple(names),
        ranks=np.array(ranks, dtype=np.int64),
        kept=np.array(kept),
        shapes=tuple(shapes),
        share=share,
        fan_in_fan_out=all(weight.transposed for weight in weights),
    )


def _ends(before: Tracker | Weights, after: Weights | None) -> tuple[Any, Any]:
    if isinstance(before, Tracker):
        if after is not None:
            raise InvalidInputError(
                "after must be left out with a tracker, which knows the weights now."
            )
        return before.reference_weights(), before.model
    if after is None:
        raise InvalidInputError("after is missing: give the weights at the end of training.")
    first, last = (e if isinstance(e, nn.Module) else open_checkpoint(e) for e in (before, after))
    return first, last


def _projections(ends: Sequence[Any], model: nn.Module | None) -> list[StoredWeight]:
    models = [end for end in (model, *ends) if isinstance(end, nn.Module)]
    if models:
        sources = find_sources(models[0])
    else:
        sources = sources_from_names(shapes_of(ends[0]), n_heads=1)
    adaptable = [s for s in sources if not s.query.name.endswith(_NOT_MODULES)]
    return list(stored_weights(adaptable).values())  # a fused weight is one module


def _named(end: Any, modules: str | Sequence[str]) -> list[StoredWeight]:
    patterns = (modules,) if isinstance(modules, str) else tuple(modules)
    weights = dict(end.named_parameters()) if isinstance(end, nn.Module) else end
    found = [StoredWeight(name) for name in weights if name.endswith(".weight")]
    return [
        weight
        for weight in sorted(found, key=lambda w: natural_order(w.name))
        if any(fnmatchcase(_module_name(weight), pattern) for pattern in patterns)
        and weights[weight.name].ndim == 2
    ]


def _lookup(end: Any, weights: Sequence[StoredWeight]) -> Lookup:
    by_name = {weight.name: weight for weight in weights}
    if isinstance(end, nn.Module):
        lookup = model_lookup(end)
        return lambda name: by_name[name].in_use(lookup)
    return stored_in_use(end, by_name)


def _module_name(weight: StoredWeight) -> str:
    return display_name(weight.name.removesuffix(".weight"))
