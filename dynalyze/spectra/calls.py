"""How an attention module can be called: as its model calls it, or with tokens made up for it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynalyze.spectra.shadow import shadow

_N_TOKENS = (16, 17, 49, 64, 196, 197, 256)  # grids with and without a class token
_FEW = 16
_MEMORY = (
    "key", "value", "k", "v", "context", "memory", "encoder_hidden_states", "kv", "y",
    "key_value_states", "x_kv", "keys", "values",
)  # fmt: skip
_SIZES = ("feat_size", "size", "hw", "hw_shape", "spatial_shape", "input_size", "input_dimensions")
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_position", "cache")


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a module, tensors detached."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Enough(Exception):  # noqa: N818
    """Every module that was waited for has been called."""


def captured_calls(model: nn.Module, names: Sequence[str], inputs: Any = None) -> dict[str, Call]:
    """Arguments with which a forward pass of a model calls its submodules of these names.

    Parameters
    ----------
    model : torch.nn.Module
        A copy of it in evaluation mode is called once; it stays as it is.
    names : sequence of str
        Submodules wanted; those that the pass does not reach are missing from what comes back.
    inputs : tensor, tuple, list or mapping, optional
        What the model is called with; by default made up for models of Hugging Face and timm, and
        for parts that are such models.
    """
    found: dict[str, Call] = {}
    for prefix, part, arguments in _parts(model, inputs):
        wanted = [name for name in names if name.startswith(prefix)]
        copy = shadow(part)
        for name in wanted:

            def keep(
                _: Any, args: Any, kwargs: Any, name: str = name, wanted: list[str] = wanted
            ) -> None:
                free = {k: None if k in _CACHES else v for k, v in kwargs.items()}
                found.setdefault(name, Call(tuple(args), free))
                if all(other in found for other in wanted):
                    raise _Enough

            target = copy.get_submodule(name.removeprefix(prefix))
            target.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            copy(*arguments.args, **arguments.kwargs)
        except _Enough:
            pass
        except Exception:
            # Made-up inputs need not suit the model; what was called before is of use all the same.
            if inputs is not None:
                raise
    return found


def _parts(model: nn.Module, inputs: Any) -> Iterator[tuple[str, nn.Module, Call]]:
    """Parts of a model that can be called on their own, with their inputs."""
    if isinstance(inputs, Mapping):
        yield "", model, Call((), dict(inputs))
    elif inputs is not None:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        yield "", model, Call(args, {})
    else:
        yield from _known_parts(model, "")


def _known_parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, Call]]:
    try:
        call = _hugging_face(module) or _vision(module)
    except (AttributeError, TypeError, ValueError):
        call = None
    if call is not None:
        yield prefix, module, call
        return
    for name, child in module.named_children():
        yield from _known_parts(child, f"{prefix}{name}.")


def _hugging_face(module: Any) -> Call | None:
    main, config = getattr(module, "main_input_name", None), getattr(module, "config", None)
    if main is None or config is None or not hasattr(module, "get_input_embeddings"):
        return None
    parameter = next(module.parameters(), torch.zeros(()))
    accepted = inspect.signature(type(module).forward).parameters
    kwargs: dict[str, Any] = {}

    def tokens() -> Tensor:
        sub = config.get_text_config() if hasattr(config, "get_text_config") else config
        return (torch.arange(16)[None] % min(sub.vocab_size, 16)).to(parameter.device)

    if main == "input_ids" or "input_ids" in accepted:
        kwargs["input_ids"] = tokens()
    if main == "pixel_values" or ("pixel_values" in accepted and hasattr(config, "vision_config")):
        vision = getattr(config, "vision_config", config)
        size = vision.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (1, getattr(vision, "num_channels", 3), height, width)
        kwargs["pixel_values"] = _noise(shape, parameter)
    if main == "input_features":
        length = 2 * config.max_source_positions
        kwargs["input_features"] = _noise((1, config.num_mel_bins, length), parameter)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        kwargs["decoder_input_ids"] = tokens()
    if "use_cache" in accepted:
        kwargs["use_cache"] = False
    return Call((), kwargs) if main in kwargs else None


def _vision(module: Any) -> Call | None:
    """Models of timm and torchvision: an image of the size that they say they take."""
    embedding = getattr(module, "patch_embed", None)
    size = getattr(embedding, "img_size", None) or getattr(module, "image_size", None)
    settings = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if size is None and isinstance(settings, Mapping):
        size = settings["input_size"][-2:]
    if size is None:
        return None
    height, width = size if isinstance(size, tuple | list) else (size, size)
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return None
    return Call((_noise((1, first.in_channels, height, width), first.weight),), {})


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator).to(like.device, like.dtype)


def smaller(call: Call, width: int) -> Iterator[Call]:
    """Calls on fewer tokens that may do as well: of fewer samples, and of a small grid.

    Parameters
    ----------
    call : Call
        How the model calls the module.
    width : int
        Number of inputs of W_Q, which tells the tokens from masks and positions.
    """
    tensors = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, Tensor)]
    tokens = next((t for t in tensors if t.ndim > 2 and width in (t.shape[-1], t.shape[1])), None)
    nested = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, tuple | list | dict)]
    if tokens is None:
        return
    n_samples, same = tokens.shape[0], all(t.shape == tokens.shape for t in tensors)

    def changed(change: Callable[[Tensor], Tensor]) -> Call:
        args = tuple(change(v) if isinstance(v, Tensor) else v for v in call.args)
        kwargs = {k: change(v) if isinstance(v, Tensor) else v for k, v in call.kwargs.items()}
        return Call(args, kwargs)

    if same and not nested and tokens.ndim == 3 and tokens.shape[1] > _FEW:
        yield changed(lambda t: t[:2, :_FEW])
    if n_samples > 2:
        yield changed(lambda t: t[:2] if t.shape[0] == n_samples else t)


def made_up_calls(module: nn.Module, widths: tuple[int, int, int], head: int) -> Iterator[Call]:
    """Calls that an attention module may accept, likeliest first.

    Parameters
    ----------
    module : torch.nn.Module
        The module, which is not called here.
    widths : tuple of int
        Numbers of inputs of W_Q, W_K and W_V.
    head : int
        Columns of W_Q per head, for rotations that are given as an argument.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return
    parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not parameters:
        return
    window = getattr(module, "window_area", None) or getattr(module, "window_size", None)
    numbers = list(_N_TOKENS)
    if isinstance(window, int):
        numbers = [window, window * window, *numbers]
    elif isinstance(window, tuple | list) and all(isinstance(w, int) for w in window):
        numbers.insert(0, window[0] * window[-1])
    shapes: list[Callable[[int, int], tuple[int, ...]]] = [lambda n, d: (2, n, d)]
    shapes += [lambda n, d: (2, _root(n), _root(n), d), lambda n, d: (2, d, _root(n), _root(n))]
    for shape in shapes:
        for n in numbers:
            for cross in (widths[1] != widths[0], True):
                yield _call(parameters, partial(shape, n), widths, n, head, cross)


def _root(n: int) -> int:
    return int(n**0.5)


def _call(
    parameters: Sequence[inspect.Parameter],
    shape: Callable[[int], tuple[int, ...]],
    widths: tuple[int, int, int],
    n: int,
    head: int,
    cross: bool,
) -> Call:
    generator = torch.Generator().manual_seed(1)
    values: dict[str, Any] = {}
    for position, parameter in enumerate(parameters):
        name = parameter.name
        required = parameter.default is parameter.empty
        if position == 0:
            values[name] = torch.randn(shape(widths[0]), generator=generator)
        elif name.lower() in _MEMORY and (required or cross):
            width = widths[2] if name.lower() in ("value", "v", "values") else widths[1]
            values[name] = torch.randn(shape(width), generator=generator)
        elif name.lower() in _SIZES and required:
            values[name] = (_root(n), n // _root(n))
        elif name == "position_embeddings" and required:
            angles = torch.randn(1, n, head, generator=generator)
            values[name] = (angles.cos(), angles.sin())
        elif required:
            values[name] = None
    first = parameters[0].name
    return Call((values.pop(first),), values)
