"""Loops, branches and addresses of the emitted instructions of `_vector_tiles`."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from dynalyze.models._vector_math import INT, VECTOR

_CODE = 2**32  # a size as one number: rows times this, plus columns


def integer(value: int) -> Any:
    return ir.Constant(INT, value)


def view(builder: Any, value: Any) -> list[Any]:
    return [builder.extract_value(value, i) for i in range(3)]


def emit_move(builder: Any, where: Any, stride: Any, count: Any) -> Any:
    """The address `count` strides on; `count` is an emitted value or a constant."""
    if isinstance(count, int):
        if count == 0:
            return where
        count = integer(count)
    return builder.add(where, builder.mul(stride, count))


def emit_sum_over(
    builder: Any,
    count: Any,
    start: Sequence[Any],
    step: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> Sequence[Any]:
    """Emit ``for k in range(count): sums = step(k, sums)``; return the sums."""
    before = builder.block
    body = builder.function.append_basic_block("sum.body")
    after = builder.function.append_basic_block("sum.after")
    builder.cbranch(builder.icmp_signed(">", count, integer(0)), body, after)
    builder.position_at_end(body)
    k = builder.phi(INT)
    k.add_incoming(integer(0), before)
    sums = [builder.phi(VECTOR) for _ in start]
    for phi, value in zip(sums, start, strict=True):
        phi.add_incoming(value, before)
    new = step(k, sums)
    following = builder.add(k, integer(1))
    k.add_incoming(following, body)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    results = []
    for value, initial in zip(new, start, strict=True):
        phi = builder.phi(VECTOR)
        phi.add_incoming(initial, before)
        phi.add_incoming(value, body)
        results.append(phi)
    return results


def emit_for_each_size(
    context: Any,
    builder: Any,
    rows: Any,
    columns: Any,
    sizes: Sequence[tuple[int, int]],
    emit: Callable[[int, int], None],
) -> None:
    """Emit a jump to ``emit(rows, columns)``, for the sizes listed; others raise ValueError."""
    function = builder.function
    impossible = function.append_basic_block("tile.impossible")
    done = function.append_basic_block("tile.done")
    code = builder.add(builder.mul(rows, integer(_CODE)), columns)
    switch = builder.switch(code, impossible)
    for n_rows, n_columns in sizes:
        block = function.append_basic_block(f"tile.{n_rows}x{n_columns}")
        switch.add_case(integer(_CODE * n_rows + n_columns), block)
        builder.position_at_end(block)
        emit(n_rows, n_columns)
        builder.branch(done)
    builder.position_at_end(impossible)
    context.call_conv.return_user_exc(builder, ValueError, ("there is no tile of this size",))
    builder.position_at_end(done)
