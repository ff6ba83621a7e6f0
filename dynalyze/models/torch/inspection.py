"""What the theory asks of a PyTorch module, checked on the module itself."""

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from dynalyze._core.pytorch import torch
from dynalyze._core.warn import warn
from dynalyze.errors import FrozenParametersWarning, InvalidInputError

nn = torch.nn

_NON_SMOOTH_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.FractionalMaxPool2d,
    nn.ELU,  # and those below: once differentiable
    nn.CELU,
    nn.SELU,
    nn.Softsign,
)


def parameter_named(module: nn.Module, name: str, where: str) -> nn.Parameter:
    """The parameter `name` of `module`; an error lists the names nearest to a missing one."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if name in parameters:
        return parameters[name]
    near = get_close_matches(name, parameters, n=3, cutoff=0.5) or list(parameters)[:5]
    raise InvalidInputError(
        f"{where} names {name!r}, which is no parameter of {type(module).__name__}; "
        f"close matches: {', '.join(near) or 'none, it has no parameters'}"
    )


def check_pairs(
    module: nn.Module, products: Sequence[Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    """Return `products` as pairs, once they name distinct parameters of equal shapes."""
    if not products:
        raise InvalidInputError(
            "products is empty: name at least one pair of parameters, such as "
            '[("head.w_k", "head.w_q")]'
        )
    seen: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for index, given in enumerate(products):
        if isinstance(given, str) or len(given) != 2:
            raise InvalidInputError(
                f"products[{index}]={given!r} is not a pair of parameter names (name_u, name_v)"
            )
        pair = (given[0], given[1])
        pairs.append(pair)
        u, v = (parameter_named(module, name, f"products[{index}]") for name in pair)
        for name, parameter in zip(pair, (u, v), strict=True):
            if not parameter.is_floating_point():
                raise InvalidInputError(
                    f"products[{index}]: {name} is {parameter.dtype}; the theory is about products "
                    "of real numbers"
                )
        if u.shape != v.shape:
            raise InvalidInputError(
                f"products[{index}]: {pair[0]} has shape {tuple(u.shape)} and {pair[1]} "
                f"{tuple(v.shape)}; an elementwise product needs equal shapes"
            )
        for name, parameter in zip(pair, (u, v), strict=True):
            if id(parameter) in seen:
                raise InvalidInputError(
                    f"products[{index}] uses {name}, which {seen[id(parameter)]} uses already: "
                    "each parameter may enter one product only"
                )
            seen[id(parameter)] = f"products[{index}]"
    return tuple(pairs)


def check_modules(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Refuse random and batch-dependent modules; name the non-smooth and the low-precision parts.

    Raises
    ------
    InvalidInputError
        If dropout is active or batch normalization is in training mode.
    """
    non_smooth = []
    for name, part in module.named_modules():
        where = f"{name or 'the module'} ({type(part).__name__})"
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise InvalidInputError(
                f"{where} drops at random with p={part.p}: L(θ) must be a function; "
                "call module.eval() first or set p=0"
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
            part.training or part.running_mean is None
        ):
            raise InvalidInputError(
                f"{where} normalizes by the statistics of the batch, so that samples depend on "
                "each other: call module.eval() to use the running statistics, or use LayerNorm"
            )
        if isinstance(part, _NON_SMOOTH_MODULES):
            non_smooth.append(where)
    low = tuple(
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if (tensor.is_floating_point() and tensor.dtype != torch.float64)
        or (tensor.is_complex() and tensor.dtype != torch.complex128)
    )
    return tuple(non_smooth), low


def check_outside(
    module: nn.Module, pairs: Sequence[Sequence[str]], parameters: str | None
) -> None:
    """Warn of parameters with ``requires_grad`` in none of the pairs, unless "frozen" is said."""
    if parameters not in (None, "frozen"):
        raise InvalidInputError(
            f'parameters={parameters!r} is not known: give "frozen", or leave it out'
        )
    named = dict(module.named_parameters(remove_duplicate=False))
    paired = {id(named[name]) for pair in pairs for name in pair}
    outside = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in paired
    ]
    if outside and parameters is None:
        warn(
            f"{some(outside)}: trainable, but in none of the products, so frozen at the values "
            "that they have. Where they train too, stages and times are others; "
            'parameters="frozen" says that this is meant',
            FrozenParametersWarning,
        )


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def names_of_entries(
    given: Sequence[str] | None, labels: Sequence[str], shapes: Sequence[torch.Size]
) -> tuple[str, ...]:
    """Readable name of each product entry; length p.

    Parameters
    ----------
    given : sequence of str, optional
        The caller's: one per entry, or one per pair, to which the index is added.
    labels : sequence of str
        One per pair, for use without `given`.
    shapes : sequence of torch.Size
        One per pair.

    Raises
    ------
    InvalidInputError
        If `given` is of another length.
    """
    n_products = sum(shape.numel() for shape in shapes)
    if given is not None:
        given = [given] if isinstance(given, str) else list(given)
        if len(given) == n_products != len(labels):
            return tuple(given)
        if len(given) != len(labels):
            raise InvalidInputError(
                f"product_names has {len(given)} entries: give one per product ({n_products}) or "
                f"one per pair ({len(labels)})"
            )
        labels = given
    return tuple(
        f"{label}[{', '.join(map(str, index))}]" if index else label
        for label, shape in zip(labels, shapes, strict=True)
        for index in np.ndindex(*shape)
    )
