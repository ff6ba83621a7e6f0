"""Vectors of doubles for Numba kernels: load, store, arithmetic and exp.

The compiler turns loops over arrays into vector instructions only when it sees how, and never
keeps a block of vectors in registers; here the instructions are written out instead. Memory is
addressed in bytes: a kernel asks `address(array)` once, which also keeps reference counting out
of its loops. The caller keeps the arrays alive and the addresses within them.

Numba's on-disk cache of a kernel notices changes of the kernel's own file only: after editing
this file, touch the files that import it.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from dynalyze._compiled import njit
from dynalyze._typing import FloatArray


def _cpu_features() -> list[str]:
    """Features of the processor that Numba compiles for, such as ``"+avx512f"``.

    Those of the host, if LLVM knows them, unless NUMBA_CPU_FEATURES, NUMBA_CPU_NAME=generic or
    NUMBA_ENABLE_AVX=0 says otherwise.
    """
    settings: Any = config  # filled from the environment, which its types do not tell
    chosen = settings.CPU_FEATURES
    return str(get_host_cpu_features() if chosen is None else chosen).split(",")


WIDE = "+avx512f" in _cpu_features()
LANES = 8 if WIDE else 4
VECTOR_BYTES = 8 * LANES

DOUBLE = ir.DoubleType()
INT = ir.IntType(64)
VECTOR = ir.VectorType(DOUBLE, LANES)
INT_VECTOR = ir.VectorType(INT, LANES)


class LanesType(types.Type):
    """Numba type of a vector of `LANES` doubles held in a register."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, VECTOR)  # type: ignore[no-untyped-call]


def _register_operator(function: Any, instruction: str) -> None:
    class Template(ConcreteTemplate):
        cases = [signature(lanes, lanes, lanes)]  # noqa: RUF012

    def lower(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    infer_global(function)(Template)
    lower_builtin(function, lanes, lanes)(lower)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_function, _instruction)


def aligned_zeros(size: int) -> FloatArray:
    """Return a float64 array of zeros of that many elements which starts at a cache line."""
    raw = np.zeros(size + 8)
    skip = (-raw.ctypes.data % 64) // 8
    return raw[skip : skip + size]


def emit_constant(value: float) -> Any:
    return ir.Constant(VECTOR, [value] * LANES)


def _integers(value: int) -> Any:
    return ir.Constant(INT_VECTOR, [value] * LANES)


def emit_splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(
        ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), mask)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c; fused where the machine can."""
    name = f"llvm.fmuladd.v{LANES}f64"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return builder.call(function, [a, b, c])


def emit_load(builder: Any, where: Any) -> Any:
    return builder.load(builder.inttoptr(where, VECTOR.as_pointer()), align=8)


def emit_store(builder: Any, where: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(where, VECTOR.as_pointer()), align=8)


def emit_load_splat(builder: Any, where: Any) -> Any:
    return emit_splat(builder, builder.load(builder.inttoptr(where, DOUBLE.as_pointer()), align=8))


# A kernel of these instructions, which have no plain-Python form.
kernel = njit(cache=True, nogil=True, always=True)


def instruction(define: Callable[..., Any]) -> Any:
    """Make a function for kernels out of one that returns a signature and a code generator."""
    return intrinsic(define)


@instruction
def address(_typing: Any, array: Any) -> Any:
    """Address of an array's first element, as an integer."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, INT)

    return types.int64(array), generate


@instruction
def load(_typing: Any, where: Any) -> Any:
    """Load the vector at an address."""
    return lanes(types.int64), lambda _c, builder, _s, args: emit_load(builder, args[0])


@instruction
def store(_typing: Any, where: Any, value: Any) -> Any:
    """Store a vector at an address."""

    def generate(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        emit_store(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), generate


@instruction
def splat(_typing: Any, scalar: Any) -> Any:
    """Vector with the same number in every lane."""
    return lanes(types.float64), lambda _c, builder, _s, args: emit_splat(builder, args[0])


@instruction
def load_splat(_typing: Any, where: Any) -> Any:
    """Vector with the number at an address in every lane."""
    return lanes(types.int64), lambda _c, builder, _s, args: emit_load_splat(builder, args[0])


@instruction
def fma(_typing: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c, lane by lane."""
    return lanes(lanes, lanes, lanes), lambda _c, builder, _s, args: emit_fma(builder, *args)


@instruction
def larger(_typing: Any, a: Any, b: Any) -> Any:
    """Lane by lane the larger of the two; b where a is not a number."""

    def generate(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes(lanes, lanes), generate


@instruction
def lane_sum(_typing: Any, vector: Any) -> Any:
    """Sum of the lanes, by halves."""

    def generate(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        total, n = args[0], LANES
        while n > 1:
            n //= 2
            # Lanes past the first n are of no further use, whatever they hold.
            moved = [n + i if i < n else i for i in range(LANES)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), moved)
            total = builder.fadd(total, builder.shuffle_vector(total, total, mask))
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float64(lanes), generate


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
        shifted = emit_fma(builder, x, emit_constant(1.0 / np.log(2.0)), emit_constant(_ROUNDER))
        k = builder.fsub(shifted, emit_constant(_ROUNDER))
        r = emit_fma(builder, k, emit_constant(-_LN2_HIGH), x)
        r = emit_fma(builder, k, emit_constant(-_LN2_LOW), r)
        series = emit_constant(_EXP_COEFFICIENTS[-1])
        for coefficient in reversed(_EXP_COEFFICIENTS[:-1]):
            series = emit_fma(builder, series, r, emit_constant(coefficient))
        rest = emit_fma(builder, builder.fmul(r, r), series, r)
        mantissa = builder.bitcast(builder.fadd(rest, emit_constant(1.0)), INT_VECTOR)
        power = builder.shl(builder.bitcast(shifted, INT_VECTOR), _integers(52))
        result = builder.bitcast(builder.add(mantissa, power), VECTOR)
        underflows = builder.fcmp_ordered("<", x, emit_constant(-708.0))
        return builder.select(underflows, emit_constant(0.0), result)

    return lanes(lanes), generate
