"""Products of small matrices whose entries are vectors, with all sums held in registers.

BLAS is slow on matrices of ten rows, and a compiled loop over arrays does not keep a block of sums
in registers; so these products, which nearly all the time goes into, are emitted as LLVM
instructions. A result is taken tile by tile, at most TILE rows by TILE columns, and there is code
for each size of tile.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import product
from typing import Any

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.np.arrayobj import make_array

from dynalyze.models.kernels.vectors import TILE, constant, instruction, multiply_add

_INT = ir.IntType(64)
_ZERO = _INT(0)


class _Matrix:
    """An array of vectors with two axes, or one, in emitted code."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = make_array(kind)(context, builder, value)
        self._builder, self._data = builder, array.data
        self.shape = cgutils.unpack_tuple(builder, array.shape)

    def _place(self, *index: Any) -> Any:
        where = index[-1]
        if len(index) == 2:
            where = self._builder.add(self._builder.mul(index[0], self.shape[1]), where)
        return self._builder.gep(self._data, [where])

    def row(self, index: Any) -> Callable[[Any], Any]:
        """What loads an entry of one row, whose place is found ahead."""
        first = self._place(index, _ZERO)
        return lambda where: self._builder.load(self._builder.gep(first, [where]), align=8)

    def load(self, *index: Any) -> Any:
        return self._builder.load(self._place(*index), align=8)

    def store(self, value: Any, *index: Any) -> None:
        self._builder.store(value, self._place(*index), align=8)


def _primitive(emit: Callable[..., None]) -> Any:
    """Make a function for kernels out of one that emits its code.

    ``emit(builder, *arguments)`` gets a `_Matrix` for each array. It is called once in each module
    that Numba compiles, for a function that the kernels there call.
    """

    @wraps(emit)
    def define(_typing: Any, *kinds: Any) -> Any:
        arrays = {kind for kind in kinds if isinstance(kind, types.Array)}
        if any(kind.layout != "C" for kind in arrays):
            raise errors.TypingError("products of matrices take C-contiguous arrays alone")

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            name = f"dynalyze.{emit.__name__}"
            function = builder.module.globals.get(name)
            if function is None:
                called = ir.FunctionType(ir.VoidType(), [value.type for value in args])
                function = ir.Function(builder.module, called, name)
                function.linkage = "internal"
                # Inlined or unrolled, this code takes much longer to compile and runs no faster.
                for attribute in ("noinline", "nounwind", "optsize"):
                    function.attributes.add(attribute)
                inner = ir.IRBuilder(function.append_basic_block())
                arguments = [
                    _Matrix(context, inner, kind, value) if kind in arrays else value
                    for kind, value in zip(sig.args, function.args, strict=True)
                ]
                emit(inner, *arguments)
                inner.ret_void()
            builder.call(function, args)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return instruction(define)


# Tokens are few: they are taken in tiles of any size, the last two alike. Features are taken in
# tiles of the two largest sizes, which make up every larger number (from 12 on), and else singly:
# fewer sizes take less time to compile.
_TOKENS, _FEATURES = range(1, TILE + 1), (1, TILE - 1, TILE)


@contextmanager
def _each_tile(
    builder: Any, sizes: Sequence[int], stop: Any, start: Any = _ZERO
) -> Iterator[tuple[Any, Any]]:
    """Emit a loop over tiles of the rows from `start` to `stop`; gives first row and number."""
    place = cgutils.alloca_once_value(builder, start)
    head, body, after = (builder.append_basic_block(name) for name in ("head", "tile", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    first = builder.load(place)
    rest = builder.sub(stop, first)
    builder.cbranch(builder.icmp_signed(">", rest, _ZERO), body, after)
    builder.position_at_end(body)
    if sizes is _FEATURES:
        whole = builder.icmp_signed("==", builder.urem(rest, _INT(TILE)), _ZERO)
        count = builder.select(whole, _INT(TILE), _INT(TILE - 1))
        few, fewer = builder.icmp_signed("<", rest, _INT(TILE - 1)), _INT(1)
    else:
        half = builder.lshr(builder.add(rest, _INT(1)), _INT(1))
        many = builder.icmp_signed(">=", rest, _INT(2 * TILE))
        count = builder.select(many, _INT(TILE), half)
        few, fewer = builder.icmp_signed("<=", rest, _INT(TILE)), rest
    count = builder.select(few, fewer, count)
    yield first, count
    builder.store(builder.add(first, count), place)
    builder.branch(head)
    builder.position_at_end(after)


def _for_its_size(
    builder: Any,
    rows: tuple[Any, Any],
    columns: tuple[Any, Any],
    emit: Callable[[list[Any], list[Any]], None],
    sizes: Sequence[int] = _TOKENS,
) -> None:
    """Emit ``emit(rows, columns)``, given lists of indices, for each size and a jump to one.

    `rows` and `columns` are of `_each_tile`, the latter for `sizes`; they may be the same.
    """
    code = builder.add(builder.mul(rows[1], _INT(TILE + 1)), columns[1])
    done = builder.append_basic_block("done")
    switch = builder.switch(code, done)
    for n_rows, n_columns in product(_TOKENS, sizes):
        if rows is columns and n_rows != n_columns:
            continue
        block = builder.append_basic_block(f"tile{n_rows}x{n_columns}")
        switch.add_case(_INT(n_rows * (TILE + 1) + n_columns), block)
        builder.position_at_end(block)
        emit(
            [builder.add(rows[0], _INT(r)) for r in range(n_rows)],
            [builder.add(columns[0], _INT(c)) for c in range(n_columns)],
        )
        builder.branch(done)
    builder.position_at_end(done)


def _for_all_tiles(
    builder: Any,
    shape: Sequence[Any],
    emit: Callable[[list[Any], list[Any]], None],
    sizes: Sequence[int] = _TOKENS,
    start: Any = _ZERO,
) -> None:
    """Emit ``emit(rows, columns)`` for all tiles of a matrix, or those of columns from `start`."""
    with (
        _each_tile(builder, sizes, shape[1], start) as columns,
        _each_tile(builder, _TOKENS, shape[0]) as rows,
    ):
        _for_its_size(builder, rows, columns, emit, sizes)


def _zero_sums(builder: Any, rows: Sequence[Any], columns: Sequence[Any]) -> dict[Any, Any]:
    """Variables for the entries (r, c) of a tile, which the compiler keeps in registers."""
    entries = product(range(len(rows)), range(len(columns)))
    return {entry: cgutils.alloca_once_value(builder, constant(0.0)) for entry in entries}


def _add_products(builder: Any, sums: dict[Any, Any], left: list[Any], right: list[Any]) -> None:
    """Add left[r] right[c] to each of the sums."""
    for (r, c), place in sums.items():
        builder.store(multiply_add(builder, left[r], right[c], builder.load(place)), place)


def _gram_tile(
    builder: Any,
    out: _Matrix,
    left: _Matrix,
    right: _Matrix,
    scale: _Matrix | None,
    lower: bool,
    rows: list[Any],
    columns: list[Any],
) -> None:
    sums = _zero_sums(builder, rows, columns)
    if lower:
        sums = {(r, c): place for (r, c), place in sums.items() if c <= r}
    left_rows, right_rows = [left.row(a) for a in rows], [right.row(b) for b in columns]
    with cgutils.for_range(builder, left.shape[1]) as loop:
        row = [load(loop.index) for load in left_rows]
        if scale is not None:
            factor = scale.load(loop.index)
            row = [builder.fmul(factor, value) for value in row]
        _add_products(builder, sums, row, [load(loop.index) for load in right_rows])
    for (r, c), place in sums.items():
        out.store(builder.load(place), rows[r], columns[c])
        if scale is not None:
            out.store(builder.load(place), columns[c], rows[r])


@_primitive
def gram(builder: Any, out: _Matrix, left: _Matrix, right: _Matrix) -> None:
    """out[a, b] = Σ_k left[a, k] right[b, k]."""
    tile = partial(_gram_tile, builder, out, left, right, None, False)
    _for_all_tiles(builder, out.shape, tile)


@_primitive
def scaled_gram(builder: Any, out: _Matrix, x: _Matrix, scale: _Matrix) -> None:
    """out[a, b] = out[b, a] = Σ_i scale_i x[a, i] x[b, i]."""
    tile = partial(_gram_tile, builder, out, x, x, scale)
    with _each_tile(builder, _TOKENS, out.shape[0]) as rows:
        with _each_tile(builder, _TOKENS, rows[0]) as columns:
            _for_its_size(builder, rows, columns, partial(tile, False))
        _for_its_size(builder, rows, rows, partial(tile, True))


def _add_means(
    builder: Any, sums: Any, weights: _Matrix, tokens: _Matrix, rows: Any, columns: Any, b: Any
) -> None:
    """Add weights[a, b] tokens[b, i] to the sums of a tile with rows a and columns i."""
    row = [weights.load(a, b) for a in rows]
    column = [tokens.load(b, i) for i in columns]
    _add_products(builder, sums, row, column)


@_primitive
def contraction(
    builder: Any,
    out: _Matrix,
    factors: _Matrix,
    weights: _Matrix,
    tokens: _Matrix,
    lower: Any,
    start: Any,
) -> None:
    """out[i] += Σ_ab factors[a, i] weights[a, b] tokens[b, i] for i ≥ start.

    Where `lower` is true, the sum is over b ≤ a alone.
    """

    def tile(rows: Any, columns: Any) -> None:
        sums = _zero_sums(builder, rows, columns)
        stop = builder.select(lower, rows[0], weights.shape[1])
        with cgutils.for_range(builder, stop) as loop:
            _add_means(builder, sums, weights, tokens, rows, columns, loop.index)
        with builder.if_then(lower):
            for r_first, b in enumerate(rows):
                from_b = {(r, c): place for (r, c), place in sums.items() if r >= r_first}
                _add_means(builder, from_b, weights, tokens, rows, columns, b)
        for c, i in enumerate(columns):
            total = out.load(i)
            for r, a in enumerate(rows):
                total = multiply_add(builder, builder.load(sums[r, c]), factors.load(a, i), total)
            out.store(total, i)

    _for_all_tiles(builder, factors.shape, tile, _FEATURES, start)


@_primitive
def residual(
    builder: Any,
    out: _Matrix,
    targets: _Matrix,
    weights: _Matrix,
    tokens: _Matrix,
    scale: _Matrix,
    omega: Any,
    sums: _Matrix,
) -> None:
    """Residual of the head's output, R = scale ⊙ M − targets with M = weights tokens.

    out = ω scale ⊙ R; sums[0, i] += ω Σ_a R_ai M_ai; sums[1, 0] += ω Σ R².
    """

    def tile(rows: Any, columns: Any) -> None:
        means = _zero_sums(builder, rows, columns)
        with cgutils.for_range(builder, weights.shape[1]) as loop:
            _add_means(builder, means, weights, tokens, rows, columns, loop.index)
        square = sums.load(_INT(1), _ZERO)
        for c, i in enumerate(columns):
            factor, slope = scale.load(i), sums.load(_ZERO, i)
            for r, a in enumerate(rows):
                mean = builder.load(means[r, c])
                rest = multiply_add(builder, factor, mean, builder.fneg(targets.load(a, i)))
                weighted = builder.fmul(omega, rest)
                slope = multiply_add(builder, weighted, mean, slope)
                square = multiply_add(builder, weighted, rest, square)
                out.store(builder.fmul(factor, weighted), a, i)
            sums.store(slope, _ZERO, i)
        sums.store(square, _INT(1), _ZERO)

    _for_all_tiles(builder, out.shape, tile, _FEATURES)
