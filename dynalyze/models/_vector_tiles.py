"""Small matrix products whose entries are vectors, with all sums held in registers.

BLAS is slow on matrices of ten rows, and loops over arrays do not keep a block of sums in
registers; so the inner loops that nearly all the time goes into are emitted here as LLVM
instructions. A tile is a few rows by a few columns of the result; a view is a triple (address,
row stride, column stride) in bytes.
"""

from collections.abc import Sequence
from typing import Any

from numba.core import types

from dynalyze.models._vector_loops import (
    emit_for_each_size,
    emit_move,
    emit_sum_over,
    integer,
    view,
)
from dynalyze.models._vector_math import (
    VECTOR,
    WIDE,
    emit_constant,
    emit_fma,
    emit_load,
    emit_load_splat,
    emit_store,
    instruction,
)

# There are 32 vector registers with AVX-512 and 16 otherwise; operands need a few of them.
TILE = 5 if WIDE else 3
_SIZES = range(1, TILE + 1)
# Features are padded to a whole number of tiles of one of these widths.
FEATURE_TILES = (TILE - 1, TILE)

_number = types.int64
_view_type = types.UniTuple(_number, 3)


_feature_sizes = [(r, c) for r in _SIZES for c in FEATURE_TILES]
# Numbers of tokens are split into tiles as equal as can be, so no other pairs meet.
_token_sizes = [
    (r, c) for r in _SIZES for c in _SIZES if r == c or (r + c > TILE and abs(r - c) == 1)
]


def _gram(scaled: bool, triangle: bool) -> Any:
    sizes = [(n, n) for n in _SIZES]
    if not triangle:
        sizes = sorted({*_token_sizes, *_feature_sizes})

    def generate(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        out, left, right = (view(builder, value) for value in args[:3])
        count, rows, columns = args[-3:]

        def emit(n_rows: int, n_columns: int) -> None:
            entries = [
                (r, c) for r in range(n_rows) for c in range(n_columns) if c <= r or not triangle
            ]

            def step(k: Any, sums: Sequence[Any]) -> Sequence[Any]:
                left_k = emit_move(builder, left[0], left[2], k)
                right_k = emit_move(builder, right[0], right[2], k)
                row = [
                    emit_load(builder, emit_move(builder, left_k, left[1], r))
                    for r in range(n_rows)
                ]
                column = [
                    emit_load(builder, emit_move(builder, right_k, right[1], c))
                    for c in range(n_columns)
                ]
                if scaled:
                    factor = emit_load_splat(builder, emit_move(builder, args[3], integer(8), k))
                    row = [builder.fmul(value, factor) for value in row]
                return [
                    emit_fma(builder, row[r], column[c], total)
                    for (r, c), total in zip(entries, sums, strict=True)
                ]

            sums = emit_sum_over(builder, count, [emit_constant(0.0)] * len(entries), step)
            for (r, c), value in zip(entries, sums, strict=True):
                where = emit_move(builder, emit_move(builder, out[0], out[1], r), out[2], c)
                emit_store(builder, where, value)

        emit_for_each_size(context, builder, rows, columns, sizes, emit)
        return context.get_dummy_value()

    return generate


@instruction
def gram_tile(
    _typing: Any, out: Any, left: Any, right: Any, count: Any, rows: Any, columns: Any
) -> Any:
    """out[r, c] = Σ_k left[r, k] right[c, k]; `out`, `left` and `right` are views."""
    arguments = [_view_type] * 3 + [_number] * 3
    return types.void(*arguments), _gram(scaled=False, triangle=False)


@instruction
def scaled_gram_tile(
    _typing: Any, out: Any, left: Any, right: Any, scale: Any, count: Any, rows: Any, columns: Any
) -> Any:
    """out[r, c] = Σ_k left[r, k] scale[k] right[c, k]; `scale` is the address of numbers."""
    arguments = [_view_type] * 3 + [_number] * 4
    return types.void(*arguments), _gram(scaled=True, triangle=False)


@instruction
def scaled_gram_triangle(
    _typing: Any, out: Any, left: Any, right: Any, scale: Any, count: Any, rows: Any, columns: Any
) -> Any:
    """The entries of `scaled_gram_tile` with c ≤ r alone; as many columns as rows."""
    arguments = [_view_type] * 3 + [_number] * 4
    return types.void(*arguments), _gram(scaled=True, triangle=True)


def _add_mean(
    builder: Any,
    weights: Sequence[Any],
    tokens: Sequence[Any],
    b: Any,
    rows: range,
    n_columns: int,
    sums: Sequence[Any],
) -> Sequence[Any]:
    """Add weights[r, b] tokens[b, c] to the sums of the `rows`; `sums` are listed row by row."""
    weights_b = emit_move(builder, weights[0], weights[2], b)
    tokens_b = emit_move(builder, tokens[0], tokens[1], b)
    column = [
        emit_load(builder, emit_move(builder, tokens_b, tokens[2], c)) for c in range(n_columns)
    ]
    new = list(sums)
    for r in rows:
        row = emit_load(builder, emit_move(builder, weights_b, weights[1], r))
        for c in range(n_columns):
            place = r * n_columns + c
            new[place] = emit_fma(builder, row, column[c], new[place])
    return new


@instruction
def residual_tile(
    _typing: Any,
    out: Any,
    target: Any,
    weights: Any,
    tokens: Any,
    scale: Any,
    gradient: Any,
    loss: Any,
    count: Any,
    rows: Any,
    columns: Any,
) -> Any:
    """Residual of the head's output, and what follows from it, without storing the output.

    With M[a, i] = Σ_b weights[a, b] tokens[b, i] and r = scale[i] M − target: out = scale[i] r;
    gradient[i] += Σ_a r M; loss += Σ_ai r². `out`, `target`, `weights` and `tokens` are views.
    """

    def generate(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        out, target, weights, tokens = (view(builder, value) for value in args[:4])
        scale, gradient, loss, count, rows, columns = args[4:]

        def emit(n_rows: int, n_columns: int) -> None:
            def step(b: Any, sums: Sequence[Any]) -> Sequence[Any]:
                return _add_mean(builder, weights, tokens, b, range(n_rows), n_columns, sums)

            means = emit_sum_over(builder, count, [emit_constant(0.0)] * (n_rows * n_columns), step)
            total = emit_load(builder, loss)
            for c in range(n_columns):
                factor = emit_load_splat(builder, builder.add(scale, integer(8 * c)))
                place = builder.add(gradient, integer(VECTOR.count * 8 * c))
                slope = emit_load(builder, place)
                for r in range(n_rows):
                    mean = means[r * n_columns + c]
                    wanted = emit_move(
                        builder, emit_move(builder, target[0], target[1], r), target[2], c
                    )
                    minus = builder.fneg(emit_load(builder, wanted))
                    residual = emit_fma(builder, factor, mean, minus)
                    total = emit_fma(builder, residual, residual, total)
                    slope = emit_fma(builder, residual, mean, slope)
                    where = emit_move(builder, emit_move(builder, out[0], out[1], r), out[2], c)
                    emit_store(builder, where, builder.fmul(factor, residual))
                emit_store(builder, place, slope)
            emit_store(builder, loss, total)

        emit_for_each_size(context, builder, rows, columns, _feature_sizes, emit)
        return context.get_dummy_value()

    return types.void(*[_view_type] * 4, *[_number] * 6), generate


def _contraction(triangle: bool) -> Any:
    def generate(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        out = args[0]
        factors, weights, tokens = (view(builder, value) for value in args[1:4])
        first, count, rows, columns = args[4:]
        weights[0] = emit_move(builder, weights[0], weights[1], first)
        factors[0] = emit_move(builder, factors[0], factors[1], first)

        def emit(n_rows: int, n_columns: int) -> None:
            def add(b: Any, start: int, sums: Sequence[Any]) -> Sequence[Any]:
                rows = range(start, n_rows)
                return _add_mean(builder, weights, tokens, b, rows, n_columns, sums)

            zeros = [emit_constant(0.0)] * (n_rows * n_columns)
            sums = emit_sum_over(builder, count, zeros, lambda b, sums: add(b, 0, sums))
            if triangle:
                for r in range(n_rows):
                    sums = add(builder.add(first, integer(r)), r, sums)
            for c in range(n_columns):
                place = builder.add(out, integer(VECTOR.count * 8 * c))
                total = emit_load(builder, place)
                for r in range(n_rows):
                    factors_r = emit_move(builder, factors[0], factors[1], r)
                    factor = emit_load(builder, emit_move(builder, factors_r, factors[2], c))
                    total = emit_fma(builder, sums[r * n_columns + c], factor, total)
                emit_store(builder, place, total)

        emit_for_each_size(context, builder, rows, columns, _feature_sizes, emit)
        return context.get_dummy_value()

    return generate


@instruction
def contraction_tile(
    _typing: Any,
    out: Any,
    factors: Any,
    weights: Any,
    tokens: Any,
    first: Any,
    count: Any,
    rows: Any,
    columns: Any,
) -> Any:
    """out[i] += Σ_a factors[a, i] Σ_{b < count} weights[a, b] tokens[b, i], a over one tile.

    The tile's rows are a = ``first, …, first + rows − 1``; the views start at row 0.
    """
    return types.void(_number, *[_view_type] * 3, *[_number] * 4), _contraction(triangle=False)


@instruction
def contraction_triangle(
    _typing: Any,
    out: Any,
    factors: Any,
    weights: Any,
    tokens: Any,
    first: Any,
    count: Any,
    rows: Any,
    columns: Any,
) -> Any:
    """The same with the sum over b ≤ a alone; `count` must be `first`."""
    return types.void(_number, *[_view_type] * 3, *[_number] * 4), _contraction(triangle=True)
