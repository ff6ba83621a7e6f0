"""Vectors of doubles for Numba kernels: arrays of them, arithmetic and exp.

The compiler turns loops over arrays into vector instructions only when it sees how. Here a vector
is a type of its own: in a kernel, `vectors(array)` is an array whose entries are vectors, which
are read, computed with and written like numbers. Samples are taken `LANES` at a time, one in each
lane.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, errors, types
from numba.core.codegen import get_host_cpu_features
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_jitable,
    register_model,
)
from numba.np.arrayobj import make_array, populate_array

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.compiled import njit


def _cpu_features() -> list[str]:
    """Features of the processor that Numba compiles for, such as ``"+avx512f"``.

    Those of the host, if LLVM knows them, unless NUMBA_CPU_FEATURES, NUMBA_CPU_NAME=generic or
    NUMBA_ENABLE_AVX=0 says otherwise.
    """
    settings: Any = config  # filled from the environment, which its types do not tell
    chosen = settings.CPU_FEATURES
    return str(get_host_cpu_features() if chosen is None else chosen).split(",")


_WIDE = "+avx512f" in _cpu_features()
LANES = 8 if _WIDE else 4
# Sums in registers at a time, by rows and by columns: there are 32 vector registers with AVX-512
# and 16 otherwise, and operands need a few of them.
TILE = 5 if _WIDE else 3

VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_BITS = ir.VectorType(ir.IntType(64), LANES)
_FUSED = ("contract",)  # lets the compiler make one instruction of a product and a sum

kernel = njit(cache=True, nogil=True, error_model="numpy")
# Part of a kernel, compiled with it: a function of its own would be compiled twice.
part = njit(inline="always")


class LanesType(types.Type):
    """Numba type of a vector of `LANES` doubles."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, VECTOR)  # type: ignore[no-untyped-call]


def _register(function: Any, emit: Callable[[Any, Any, Any], Any]) -> None:
    class Template(ConcreteTemplate):
        cases = [signature(lanes, lanes, lanes)]  # noqa: RUF012

    infer_global(function)(Template)
    lower_builtin(function, lanes, lanes)(
        lambda _context, builder, _sig, args: emit(builder, *args)
    )


_register(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FUSED))
_register(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FUSED))
_register(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FUSED))
_register(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
# The second of the two where the first is not a number
_register(max, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


def zeros(*shape: int) -> FloatArray:
    """Array of vectors of zeros for kernels, shape (*shape, LANES), from a cache line on."""
    size = math.prod(shape) * LANES
    raw = np.zeros(size + 8)
    skip = -raw.ctypes.data % 64 // 8
    return raw[skip : skip + size].reshape(*shape, LANES)


def sample_lanes(values: FloatArray, kept: IntArray | None = None) -> FloatArray:
    """Rearrange samples for the kernels: ``out[block, token, feature, lane]``.

    Parameters
    ----------
    values : ndarray, shape (n_samples, n_tokens, d)
    kept : ndarray of int, optional
        The samples to take; by default all. No more than a lane of them is copied at a time.

    Returns
    -------
    ndarray, shape (n_blocks, n_tokens, d, LANES)
        The last block is filled up with zeros.
    """
    _, n_tokens, d = values.shape
    rows = np.arange(len(values)) if kept is None else kept
    out = zeros(-(-len(rows) // LANES), n_tokens, d)
    for lane in range(LANES):
        samples = values[rows[lane::LANES]]
        out[: len(samples), ..., lane] = samples
    return out


def instruction(define: Callable[..., Any]) -> Any:
    """Make a function for kernels out of one that returns a signature and a code generator."""
    return intrinsic(define)


def _array_of_vectors(
    context: Any, builder: Any, kind: Any, memory: Any, where: Any, shape: Sequence[Any]
) -> Any:
    """Array in the memory of another, from an address on."""
    size = ir.IntType(64)(8 * LANES)
    strides = [size]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(length, strides[0]))
    array = make_array(kind)(context, builder)
    data = builder.inttoptr(where, array.data.type)
    populate_array(array, data, shape, strides, size, memory.meminfo)
    return impl_ret_borrowed(context, builder, kind, array._getvalue())


@instruction
def vectors(_typing: Any, array: Any) -> Any:
    """View of a C-contiguous array whose last axis is of length LANES, as an array of vectors."""
    if array.layout != "C":
        raise errors.TypingError("vectors are views of C-contiguous arrays alone")
    kind = types.Array(lanes, array.ndim - 1, "C", aligned=False)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = make_array(sig.args[0])(context, builder, args[0])
        where = builder.ptrtoint(memory.data, ir.IntType(64))
        shape = cgutils.unpack_tuple(builder, memory.shape)[:-1]
        return _array_of_vectors(context, builder, kind, memory, where, shape)

    return kind(array), generate


@instruction
def _aligned(_typing: Any, raw: Any, n_rows: Any, n_columns: Any) -> Any:
    """Array of vectors in memory, from the first cache line on that begins there."""
    kind = types.Array(lanes, 2, "C", aligned=False)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = make_array(sig.args[0])(context, builder, args[0])
        end = builder.add(builder.ptrtoint(memory.data, ir.IntType(64)), ir.IntType(64)(63))
        where = builder.and_(end, ir.IntType(64)(-64))
        return _array_of_vectors(context, builder, kind, memory, where, args[1:])

    return kind(raw, types.intp, types.intp), generate


@register_jitable
def matrix(n_rows: int, n_columns: int) -> Any:
    """Matrix of vectors with any entries."""
    return _aligned(np.empty((n_rows * n_columns + 1) * LANES), n_rows, n_columns)


def constant(value: float) -> Any:
    """Emitted vector with the same number in every lane."""
    return ir.Constant(VECTOR, [value] * LANES)


@instruction
def splat(_typing: Any, number: Any) -> Any:
    """Vector with a number of the kernel in every lane."""

    def generate(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        first = builder.insert_element(constant(0.0), args[0], ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, first, mask)

    return lanes(types.float64), generate


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit a b + c; fused where the machine can."""
    called = ir.FunctionType(VECTOR, [VECTOR] * 3)
    name = f"llvm.fmuladd.v{LANES}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, called, name), [a, b, c])


_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# 1.5 × 2^52: adding it to a small number leaves the nearest integer in the low bits
_ROUNDER = 6755399441055744.0
# (e^r − 1 − r)/r² interpolated at the 10 Chebyshev points of |r| ≤ ½ ln 2 (in 60 digits)
_EXP_COEFFICIENTS = (
    0.5000000000000001,
    0.16666666666666669,
    0.04166666666662413,
    0.008333333333330062,
    0.0013888888917213717,
    0.00019841269863053618,
    2.4801521295954376e-05,
    2.7557268459997064e-06,
    2.7620088445409746e-07,
    2.510038549551032e-08,
)


@instruction
def exp(_typing: Any, x: Any) -> Any:
    """Exponential of numbers up to 700, within 2 ulp; 0 below −708."""

    def generate(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        (x,) = args
        shifted = multiply_add(builder, x, constant(1.0 / np.log(2.0)), constant(_ROUNDER))
        k = builder.fsub(shifted, constant(_ROUNDER))
        r = multiply_add(builder, k, constant(-_LN2_HIGH), x)
        r = multiply_add(builder, k, constant(-_LN2_LOW), r)
        series = constant(_EXP_COEFFICIENTS[-1])
        for coefficient in reversed(_EXP_COEFFICIENTS[:-1]):
            series = multiply_add(builder, series, r, constant(coefficient))
        rest = multiply_add(builder, builder.fmul(r, r), series, r)
        mantissa = builder.bitcast(builder.fadd(rest, constant(1.0)), _BITS)
        shift = ir.Constant(_BITS, [52] * LANES)
        power = builder.shl(builder.bitcast(shifted, _BITS), shift)
        result = builder.bitcast(builder.add(mantissa, power), VECTOR)
        underflows = builder.fcmp_ordered("<", x, constant(-708.0))
        return builder.select(underflows, constant(0.0), result)

    return lanes(lanes), generate
