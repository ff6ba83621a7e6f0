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
        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(kind).replace(return_annotation=returned)

        @functools.wraps(function)
        def call(*args: _P.args, **keywords: _P.kwargs) -> _Result:
            with every_rank():
                signature.bind(*args, **keywords)  # whose errors do not name the dataclass
                given = kind(*args, **keywords)
            return function(given)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate
