"""A copy of an attention module with random weights in the places of W_Q, W_K, W_V and W_O."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynalyze.spectra.calls import Call
from dynalyze.spectra.recognition import resolve
from dynalyze.spectra.shadow import converted, first_output, put, shadow
from dynalyze.spectra.sources import AttentionSource, Factors

_APPLIED = ""  # instead of a name: W_O where the module has none is applied to its output


@dataclass
class Trial:
    """A copy of the module with random weights in the places of W_Q, W_K, W_V and W_O."""

    copy: nn.Module
    index: Factors  # position of each entry in its stored weight
    names: dict[str, str]  # relative name of the stored weight of each factor, by factor
    weights: dict[str, Tensor]  # random stored weights by relative name
    transposed: bool  # whether they are stored (in, out)
    n_heads: int
    run: Callable[[], Tensor] = field(default=lambda: torch.zeros(0))

    @classmethod
    def of(
        cls, module: nn.Module, source: AttentionSource, prefix: str, dtype: torch.dtype
    ) -> "Trial":
        """Copy a module and put random weights where `source` says that its factors are."""
        stored = dict(zip(("W_Q", "W_K", "W_V", "W_O"), source.weights, strict=False))
        sizes: dict[str, torch.Size] = {}

        def position(name: str) -> Tensor:
            value = resolve(module, name.removeprefix(prefix))
            sizes[name.removeprefix(prefix)] = value.shape
            return torch.arange(value.numel(), dtype=torch.float64).reshape(value.shape)

        places = source.factors(position, adapted=False)
        index = Factors(**{name: heads.long() for name, heads in vars(places).items()})
        generator = torch.Generator().manual_seed(0)
        copy = shadow(module, dtype)
        device = next(iter(copy.parameters())).device
        names = {factor: w.name.removeprefix(prefix) for factor, w in stored.items()}
        weights = {}
        for name, shape in sizes.items():
            values = torch.randn(shape, generator=generator) / min(shape[:2]) ** 0.5
            weights[name] = values.to(device, dtype)
        if "W_O" not in names:
            width = index.W_O.shape[0] * index.W_O.shape[2]
            names["W_O"] = _APPLIED
            weights[_APPLIED] = torch.randn(width, width, generator=generator).to(device, dtype)
            index = Factors(index.W_Q, index.W_K, index.W_V, _output_index(index))
        index = Factors(**{name: heads.to(device) for name, heads in vars(index).items()})
        trial = cls(copy, index, names, weights, source.query.transposed, source.n_heads)
        for name, parameter in list(copy.named_parameters()):
            if "bias" in name.lower() and parameter.is_floating_point():
                put(copy, name, torch.zeros_like(parameter))
            elif parameter.ndim > 1 and not parameter.any() and name not in weights:
                # What starts at zero acts once it is trained.
                put(copy, name, torch.randn(parameter.shape, generator=generator).to(parameter))
        return trial

    def factor(self, name: str) -> Tensor:
        """Per-head factor, a copy."""
        return self.weights[self.names[name]].flatten()[getattr(self.index, name)]

    def use(self, call: Call) -> None:
        """Call the module so from now on; raises whatever the call raises."""
        like = next(iter(self.weights.values()))
        width = self.index.W_Q.shape[1]
        generator = torch.Generator().manual_seed(2)
        fresh: list[int] = []

        def prepared(value: Tensor) -> Tensor:
            value = value.to(like.device)
            if not value.is_floating_point():
                return value
            if not fresh and width in (value.shape[-1], *value.shape[1:2]):
                fresh.append(1)  # the tokens, which an untrained model may have made all alike
                value = torch.randn(value.shape, generator=generator)
            return value.to(like)

        # The same tensor given twice, as queries and keys, stays the same.
        known: dict[int, Tensor] = {}

        def once(value: Tensor) -> Tensor:
            key = value.data_ptr()
            if key not in known or known[key].shape != value.shape:
                known[key] = prepared(value)
            return known[key]

        args, kwargs = converted(call.args, once), converted(dict(call.kwargs), once)

        def run() -> Tensor:
            same: Callable[[Tensor], Tensor] = lambda value: value  # noqa: E731
            result = first_output(self.copy(*converted(args, same), **converted(kwargs, same)))
            if result is None or not result.numel():
                raise TypeError("it returns no tensor")
            return result

        self.run = run
        self.outcome({})

    def outcome(self, changed: dict[str, Tensor]) -> Tensor:
        """Output with some factors changed, flat, in double precision."""
        weights = dict(self.weights)
        for factor, heads in changed.items():
            name = self.names[factor]
            weights[name] = weights[name].clone()
            weights[name].view(-1)[getattr(self.index, factor)] = heads
        output = weights.pop(_APPLIED, None)
        for name, weight in weights.items():
            put(self.copy, name, weight)
        # Modules that draw random numbers in evaluation too draw the same each time; the generators
        # are put back by the caller.
        torch.manual_seed(0)
        result = self.run()
        if output is not None:
            result = result.reshape(-1, output.shape[1]) @ output.mT
        return torch.nan_to_num(result.double().flatten())

    def shifted(self, factor: str) -> Tensor | None:
        """Output with a constant added to all queries (W_Q), or to all keys (W_K), by a bias.

        None where the module that holds the weight takes no bias.
        """
        name = self.names[factor]
        path, _, leaf = name.rpartition(".")
        holder = self.copy.get_submodule(path)
        bias = leaf.removesuffix("weight") + "bias"
        if not leaf.endswith("weight") or bias not in holder._parameters:
            return None
        shape, places = self.weights[name].shape, getattr(self.index, factor)[:, 0].flatten()
        n_rows = shape[1] if self.transposed else shape[0]
        rows = places % n_rows if self.transposed else places // shape[1:].numel()
        values = torch.zeros(n_rows).index_fill(0, rows.cpu(), 1.0) * torch.randn(
            n_rows, generator=torch.Generator().manual_seed(5)
        )
        before = holder._parameters[bias]
        holder._parameters[bias] = values.to(self.weights[name])  # type: ignore[assignment]
        result = self.outcome({})
        holder._parameters[bias] = before
        return result

    def make_uniform(self) -> None:
        """Let all else treat every channel alike: gains 1, filters equal, no gates."""
        linear = {
            f"{name}.weight"
            for name, module in self.copy.named_modules()
            if isinstance(module, nn.Linear)
        }
        for name, parameter in list(self.copy.named_parameters()):
            if name in self.weights or not parameter.is_floating_point():
                continue
            if parameter.ndim == 1:
                put(self.copy, name, torch.ones_like(parameter))
                if "bias" in name.lower():
                    put(self.copy, name, torch.zeros_like(parameter))
            elif name in linear:
                put(self.copy, name, torch.zeros_like(parameter))
            elif parameter.ndim >= 3 and parameter.shape[1] == 1:
                put(self.copy, name, parameter.mean(0, keepdim=True).expand_as(parameter).clone())


def _output_index(index: Factors) -> Tensor:
    """Entries of a square W_O (out, in) that stands in for none, (H, d_out, m)."""
    n_heads, _, m = index.W_O.shape
    width = n_heads * m
    places = torch.arange(width * width).reshape(width, n_heads, m)
    return places.permute(1, 0, 2)
