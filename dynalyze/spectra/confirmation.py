"""Believing a layout: what a module's own forward pass says of it, in notes and errors."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, UnconfirmedLayoutWarning
from dynalyze.spectra.arithmetic import plain_arithmetic
from dynalyze.spectra.calls import Call, captured_calls
from dynalyze.spectra.probe import Verdict, probe
from dynalyze.spectra.recognition import Candidate, resolve
from dynalyze.spectra.shadow import converted
from dynalyze.spectra.sources import AttentionSource

_ROTARY = ("position_embeddings", "rope", "rotary_pos_emb", "freqs_cis", "rotary_emb", "rotary")
_NORMS = (
    "q_norm", "k_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm", "qk_norm",
    "norm_q", "norm_k", "q_ln", "k_ln", "query_layernorm", "key_layernorm",
)  # fmt: skip
_POOLING = ("pool_q", "pool_k", "pool", "q_stride", "sr", "conv_proj_q", "downsample")
_PLAIN = (int, float, str, bool, tuple, type(None), torch.Size)
_EVERY_MODULE_HAS = frozenset(vars(nn.Module()))
_NUMBERS = ("layer_idx", "layer_index", "layer_id", "layer_number", "block_idx")
_HOW = (
    "declare where the weights are, as in layouts={{{name!r}: AttentionLayout(query, key, value, "
    "output, n_heads)}} with names of weights or WeightSlice(name, part, parts, per_head), or "
    "leave the layer out with layers="
)


def confirmed(
    model: nn.Module, candidates: Sequence[Candidate], inputs: Any
) -> tuple[AttentionSource, ...]:
    """The layout of each candidate that its forward pass confirms, with a note of what differs.

    Raises
    ------
    InvalidInputError
        If the forward pass of a module refutes every layout that its weights fit.

    Warns
    -----
    UnconfirmedLayoutWarning
        If modules could not be called, or refute a layout that was declared.
    """
    found, unasked = [], []
    cuda = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with plain_arithmetic(), torch.random.fork_rng(sorted(cuda)):
        calls = captured_calls(model, [candidate.name for candidate in candidates], inputs)
        known: dict[Any, tuple[int, Verdict | None]] = {}
        for candidate in candidates:
            call = calls.get(candidate.name)
            kind = _kind(candidate, call)
            if kind not in known:
                known[kind] = _believed(candidate, call)
            choice, verdict = known[kind]
            source = candidate.sources[choice]
            if verdict is not None and verdict.confirmed is None and not candidate.declared:
                unasked.append((candidate, verdict.why))
            given = candidate.name in calls
            found.append(replace(source, note=_note(candidate.module, verdict, given)))
    if unasked:
        first, why = unasked[0]
        warn(
            f"the layouts of {len(unasked)} of {len(candidates)} attention layers are believed "
            f"from the names of their weights alone: {first.layer!r} "
            f"({type(first.module).__name__}) could not be asked, since {why}. Pass inputs=, a "
            "batch that the model is called with, or " + _HOW.format(name=first.layer) + ".",
            UnconfirmedLayoutWarning,
        )
    return tuple(found)


def _kind(candidate: Candidate, call: Call | None) -> Any:
    """Layers for which this is equal are asked once: same code, settings, shapes and arguments."""
    settings = []
    for name, module in candidate.module.named_modules():
        plain = {
            key: value if isinstance(value, _PLAIN) else (type(value), id(value))
            for key, value in vars(module).items()
            if key not in _NUMBERS and key not in _EVERY_MODULE_HAS
        }
        tensors = {
            key: (value.shape, value.dtype, value.device)
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        }
        indices = [hash(b.numpy(force=True).tobytes()) for b in _indices(module)]
        settings.append((name, type(module), repr(plain), repr(tensors), *indices))
    given = None if call is None else repr(converted((call.args, dict(call.kwargs)), _shape))
    return candidate.declared, len(candidate.sources), tuple(settings), given


def _indices(module: nn.Module) -> list[Tensor]:
    """Buffers of integers, which may say where heads are."""
    found = [buffer for buffer in module._buffers.values() if buffer is not None]
    return [b for b in found if not (b.is_meta or b.is_floating_point() or b.is_complex())]


def _shape(value: Tensor) -> Any:
    return tuple(value.shape), value.dtype


def _believed(candidate: Candidate, call: Call | None) -> tuple[int, Verdict | None]:
    """Position of the layout to believe among the candidate's, and what the module says of it."""
    module, name = candidate.module, candidate.name
    prefix = f"{name}." if name else ""
    unasked, wrong = None, ""
    for choice, source in enumerate(candidate.sources):
        if not _readable(module, source, prefix):
            return choice, None  # refused in words where the weights are read
        verdict = probe(module, source, prefix, call)
        if verdict.confirmed:
            return choice, verdict
        if verdict.confirmed is None and unasked is None:
            unasked = choice, verdict
        wrong = wrong or verdict.why
        if verdict.confirmed is False and candidate.declared:
            warn(
                f"the forward pass of {candidate.layer!r} ({type(module).__name__}) does not bear "
                "out the layout declared for it: its heads are not where the layout says, or act "
                f"on one another{': ' + verdict.why if verdict.why else ''}.",
                UnconfirmedLayoutWarning,
            )
            return choice, verdict
    if unasked is not None:
        return unasked
    weights = ", ".join(dict.fromkeys(w.name for w in candidate.sources[0].weights))
    raise InvalidInputError(
        f"layer {candidate.layer!r} ({type(module).__name__}) does not keep its heads where its "
        f"weights {weights} suggest ({wrong or 'its own forward pass shows so'}): "
        + _HOW.format(name=candidate.layer)
        + "."
    )


def _readable(module: nn.Module, source: AttentionSource, prefix: str) -> bool:
    for weight in source.weights:
        value = resolve(module, weight.name.removeprefix(prefix))
        plain = isinstance(value, Tensor) and not hasattr(value, "placements")
        if not plain or not value.is_floating_point() or value.element_size() == 1:
            return False
    return True


def _note(module: nn.Module, verdict: Verdict | None, given: bool) -> str:
    """Say in what the module's logits or output are not the bilinear forms of the products."""
    if verdict is None:
        return ""
    accepted = inspect.signature(module.forward).parameters
    rotary = [n for n in _ROTARY if n in accepted or _acts(module, n)]
    rotary += [n for n in vars(module) if "rotary" in n and _acts(module, n)]
    reasons = []
    norms = [n for n in _NORMS if _acts(module, n)]
    if norms:
        reasons.append(f"{' and '.join(norms)} act between W_Q, W_K and the logits")
    if rotary:
        reasons.append("rotary positions: W_K W_Q^T is the logit form at relative position 0 only")
    notes = []
    if verdict.confirmed is None:
        notes = [f"layout not confirmed, since {verdict.why}", *reasons]
        if _acts(module, "gate"):
            notes.append("a gate acts between W_V and W_O")
        return "; ".join(notes)
    if not verdict.bilinear_logits:
        pooled = [n for n in _POOLING if _acts(module, n)]
        if any("logit_scale" in part._parameters for part in module.modules()):
            reasons.append("queries and keys are normalized (cosine attention)")
        if pooled:
            reasons.append(f"{' and '.join(pooled)} act on the tokens")
        notes = reasons or ["the logits are not a function of W_K W_Q^T alone"]
    elif rotary and not given:
        notes.append("rotary positions, if the model gives any, are not part of W_K W_Q^T")
    if not verdict.bilinear_output:
        gated = " (a gate acts between them)" if _acts(module, "gate") else ""
        notes.append(f"the output is not a function of W_V W_O^T alone{gated}")
    if not verdict.bilinear_logits and not verdict.bilinear_output and not reasons:
        notes = [
            "neither logits nor output are functions of the products alone, as where the "
            "attention is between channels"
        ]
    if not verdict.local:
        notes.append("heads act on one another")
    return "; ".join(notes)


def _acts(module: nn.Module, name: str) -> bool:
    """Whether the module, or a part of it, has something of this name that does something."""
    values = (vars(part).get(name, part._modules.get(name)) for part in module.modules())
    return any(not isinstance(v, nn.Identity | None) and v not in (False, 1) for v in values)
