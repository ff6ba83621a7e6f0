"""Functions whose arguments are written once: as the dataclass that holds and checks them."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dynalyze._core.collectives import every_rank

_P = ParamSpec("_P")
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


def called_with(
    kind: Callable[_P, _Given],
) -> Callable[[Callable[[_Given], _Result]], Callable[_P, _Result]]:
    """Have a function of one dataclass called with the arguments that make the dataclass."""

    def decorate(function: Callable[[_Given], _Result]) -> Callable[_P, _Result]:
        # Keywords that must be given stand before those that a base class declares.
        parameters = inspect.signature(kind).parameters.values()
        in_order = sorted(parameters, key=lambda p: (p.kind, p.default is not p.empty))
        signature = inspect.signature(function).replace(parameters=in_order)

        @functools.wraps(function)
        def call(*args: _P.args, **keywords: _P.kwargs) -> _Result:
            with every_rank():
                try:
                    signature.bind(*args, **keywords)
                except TypeError as error:
                    raise TypeError(f"{function.__name__}() {error}") from None
                given = kind(*args, **keywords)
            return function(given)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate
