"""Whether a module keeps its heads where a layout says: asked of the module's own forward pass.

A layout claims four sets of numbers per head h: W_Q, W_K, W_V and W_O. The claim is tested with
random weights in their places, by changes of them after which the output must be the same:

- *locality*: with W_O of the heads outside a set S put to zero, the output does not depend on W_Q,
  W_K and W_V of the heads outside S;
- *value gauge*: W_V G and W_O G⁻ᵀ in place of W_V and W_O, for any invertible G per head, since
  only the product W_V W_Oᵀ enters; *query gauge*: W_K G and W_Q G⁻ᵀ likewise.

Locality holds for whatever acts on each head by itself: biases, masks, windows, rotary positions,
normalized queries, gates, attention between channels. The gauges hold only where logits and output
are the bilinear forms of the products, up to terms that contain neither factor; what they find is
the note of the layer. Where heads are coupled or values transformed, a permutation of the columns
in place of G, with everything else in the module made uniform, still confirms the layout.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynalyze.errors import InvalidInputError
from dynalyze.spectra.calls import Call, made_up_calls, smaller
from dynalyze.spectra.sources import AttentionSource, expand_heads
from dynalyze.spectra.trial import Trial

_HOLDS = 1e-3  # of the change that half of an invariance makes; float32 leaves 1e-5
_ACTS = 1e-6  # of the output: what moves it by less does not act on it


@dataclass(frozen=True)
class Verdict:
    """What the forward pass of a module says of a layout."""

    confirmed: bool | None  # None: it could not be asked
    bilinear_logits: bool = False  # only W_K W_Qᵀ enters the attention
    bilinear_output: bool = False  # only W_V W_Oᵀ enters the output
    local: bool = False  # heads do not act on one another
    why: str = ""  # why it could not be asked


def probe(
    module: nn.Module, source: AttentionSource, prefix: str, captured: Call | None
) -> Verdict:
    """Ask a module whether its heads are where `source` says.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module; a copy of it is called, on a few tokens or as `captured`.
    source : AttentionSource
        The claim.
    prefix : str
        What precedes the names of the module's weights in `source`.
    captured : Call, optional
        How the model calls the module.
    """
    dtype = torch.get_default_dtype()
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    try:
        trial = Trial.of(module, source, prefix, dtype)
    except InvalidInputError as error:
        return Verdict(False, why=str(error))
    except Exception as error:
        return Verdict(None, why=f"its weights cannot be replaced ({error})")
    why = "its forward pass takes arguments that are not known"
    for call in _calls(module, trial, captured):
        try:
            trial.use(call)
            verdict = _judge(trial)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            if call is captured:
                why = f"it failed on what its model gives it ({error})"
            continue
        if verdict.confirmed is not None:
            return verdict
        why = verdict.why
    return Verdict(None, why=why)


def _calls(module: nn.Module, trial: "Trial", captured: Call | None) -> Iterator[Call]:
    """Calls to try: few tokens where the model gives the module nothing but tokens."""
    w = trial.index
    if captured is not None:
        yield from smaller(captured, w.W_Q.shape[1])
        yield captured
    yield from made_up_calls(
        module, (w.W_Q.shape[1], w.W_K.shape[1], w.W_V.shape[1]), w.W_Q.shape[2]
    )


def _judge(trial: Trial) -> Verdict:
    base = trial.outcome({})
    plain = _Answers.of(trial, base)
    if plain.acts is False:
        return Verdict(None, why="its output does not depend on these weights")
    if plain.query_gauge and _queries_are_keys(trial, base):
        return Verdict(False, why="what is claimed to be W_Q is W_K")
    if plain.local and plain.value_gauge and plain.query_gauge:
        return Verdict(True, True, True, True)
    trial.make_uniform()
    even = _Answers.of(trial, trial.outcome({}))
    local = plain.local or even.local
    values = plain.value_columns or even.value_columns
    queries = plain.query_columns or even.query_columns
    coupled = values and queries and not (plain.merged or even.merged)
    return Verdict(
        (local and (values or not (_exchanged(trial) or _too_coarse(trial)))) or coupled,
        bilinear_logits=plain.query_gauge,
        bilinear_output=plain.value_gauge,
        local=plain.local,
    )


@dataclass(frozen=True)
class _Answers:
    acts: bool  # each of the four moves the output
    local: bool
    value_gauge: bool
    query_gauge: bool
    value_columns: bool  # at least the gauge of permutations
    query_columns: bool
    merged: bool  # heads taken together pass the value gauge: there are fewer of them

    @classmethod
    def of(cls, trial: Trial, base: Tensor) -> "_Answers":
        value = _gauge(trial, base, "W_V", "W_O")
        query = _gauge(trial, base, "W_K", "W_Q")
        if value is None or query is None:
            return cls(False, False, False, False, False, False, False)
        local = _local(trial)
        return cls(
            True,
            local,
            value,
            query,
            value or bool(_gauge(trial, base, "W_V", "W_O", columns=True)),
            query or bool(_gauge(trial, base, "W_K", "W_Q", columns=True)),
            not local and _too_fine(trial, base),
        )


def _gauge(
    trial: Trial, base: Tensor, few: str, many: str, *, columns: bool = False, together: int = 1
) -> bool | None:
    """Whether the output stays under F G, H G⁻ᵀ per head; None if it stays under F G alone.

    F is the factor of the key-value heads (W_K or W_V), H that of the query heads. So many heads
    `together` count as one.
    """
    first, second = trial.factor(few), trial.factor(many)
    n_groups, _, m = first.shape
    turn = _invertible(n_groups // together, together * m, first, columns=columns)
    back = torch.linalg.inv(turn).mT
    back = expand_heads(back, second.shape[0] // together)
    moved = {
        few: _split(_joined(first, together) @ turn, together),
        many: _split(_joined(second, together) @ back, together),
    }
    half = _distance(trial.outcome({few: moved[few]}), base)
    if half <= _ACTS * float(base.norm()):
        return None
    return _distance(trial.outcome(moved), base) <= _HOLDS * half


def _invertible(n: int, m: int, like: Tensor, *, columns: bool) -> Tensor:
    """Random matrices, (n, m, m), well conditioned; with `columns`, permutations."""
    generator = torch.Generator().manual_seed(3)
    if columns and m > 1:
        orders = [torch.randperm(m, generator=generator) for _ in range(n)]
        return torch.stack([torch.eye(m)[order] for order in orders]).to(like)
    if columns:
        return (1.0 - 2.0 * (torch.arange(n) % 2))[:, None, None].to(like)
    turn = torch.linalg.qr(torch.randn(n, m, m, generator=generator, dtype=torch.float64))[0]
    sizes = 0.7 + 0.7 * torch.rand(n, 1, m, generator=generator, dtype=torch.float64)
    return (turn * sizes).to(like)


def _rolled(heads: Tensor) -> Tensor:
    """Columns of each head moved on by one; a single column changes its sign."""
    return heads.roll(1, -1) if heads.shape[-1] > 1 else -heads


def _local(trial: Trial, split: int = 1) -> bool:
    """Whether heads that W_O does not read leave the output alone, for sets that part all heads.

    With `split`, every head counts as so many narrower ones.
    """
    n_groups = trial.index.W_K.shape[0]
    group = torch.arange(trial.n_heads) // (trial.n_heads // n_groups)
    group = (group[:, None] * split + torch.arange(split)).flatten()
    parts = {n: _split(trial.factor(n), split) for n in ("W_Q", "W_K", "W_V", "W_O")}
    scales = [0.0, 0.0]
    for bit in range((len(group) - 1).bit_length()):
        read = (torch.arange(len(group)) >> bit) % 2 == 1
        masked = parts["W_O"] * read[:, None, None].to(parts["W_O"])
        base = trial.outcome({"W_O": _joined(masked, split)})

        def moved(heads: Tensor, *names: str, o: Tensor = masked, base: Tensor = base) -> float:
            """How far the output moves if factors of `heads` do; W_K, W_V in whole groups only."""
            whole = torch.tensor([bool(heads[group == g].all()) for g in range(n_groups * split)])
            changed = {n: _where(heads if n == "W_Q" else whole, parts[n]) for n in names}
            changed = {n: _joined(f, split) for n, f in {"W_O": o, **changed}.items()}
            return _distance(trial.outcome(changed), base)

        # Values often move the output more than the attention does: each has its own measure.
        for i, names in enumerate((("W_Q", "W_K"), ("W_V",))):
            scales[i] = max(scales[i], moved(read, *names) if bit == 0 else 0.0)
            if not moved(~read, *names) <= _HOLDS * scales[i]:
                return False
    return True


def _split(heads: Tensor, count: int) -> Tensor:
    n, d, m = heads.shape
    return heads.reshape(n, d, count, m // count).transpose(1, 2).reshape(n * count, d, -1)


def _joined(heads: Tensor, count: int) -> Tensor:
    n, d, m = heads.shape
    return heads.reshape(n // count, count, d, m).transpose(1, 2).reshape(n // count, d, -1)


def _primes(number: int) -> list[int]:
    return [p for p in range(2, number + 1) if number % p == 0 and all(p % q for q in range(2, p))]


def _where(heads: Tensor, factor: Tensor) -> Tensor:
    return torch.where(heads.to(factor.device)[:, None, None], _rolled(factor), factor)


def _too_fine(trial: Trial, base: Tensor) -> bool:
    """Whether several heads taken together are one, of which only W_V W_Oᵀ as a whole matters."""
    n_groups = trial.index.W_V.shape[0]
    return n_groups == trial.n_heads and any(
        bool(_gauge(trial, base, "W_V", "W_O", together=p)) for p in _primes(n_groups)
    )


def _too_coarse(trial: Trial) -> bool:
    """Whether narrower heads do not act on one another either."""
    width = math.gcd(trial.index.W_Q.shape[2], trial.index.W_V.shape[2])
    return any(_local(trial, p) for p in _primes(width))


def _queries_are_keys(trial: Trial, base: Tensor) -> bool:
    """Whether what is claimed to be the queries are the keys.

    A constant added to all keys adds the same to all logits of a query, which softmax does not see.
    """
    queries, keys = trial.shifted("W_Q"), trial.shifted("W_K")
    if queries is None or keys is None:
        return False
    shift = _distance(keys, base)
    acts = shift > _ACTS * float(base.norm())  # not where the module has biases of its own
    return acts and _distance(queries, base) <= _HOLDS * shift


def _exchanged(trial: Trial) -> bool:
    """Whether what is claimed to be W_K or W_Q is what W_O reads: the parts have other places."""
    if trial.index.W_V.shape[2] != trial.index.W_Q.shape[2]:
        return False
    base = trial.outcome({})
    return any(bool(_gauge(trial, base, name, "W_O")) for name in ("W_K", "W_Q"))


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm())
