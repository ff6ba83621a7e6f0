"""Loss, gradient and Hessian columns of the attention head, for samples in lanes of vectors.

With NUMBA_DISABLE_JIT=1 those of `plain` stand in for the compiled ones.
"""

from numba.core import config

from dynalyze.models.kernels.threads import available_threads, run_chunks
from dynalyze.models.kernels.vectors import LANES, sample_lanes, zeros

if getattr(config, "DISABLE_JIT"):  # noqa: B009 - an attribute that its types do not tell
    from dynalyze.models.kernels.plain import hessian_columns, loss_and_gradient
else:
    from dynalyze.models.kernels.gradient import loss_and_gradient
    from dynalyze.models.kernels.hessian import hessian_columns

__all__ = [
    "LANES",
    "available_threads",
    "hessian_columns",
    "loss_and_gradient",
    "run_chunks",
    "sample_lanes",
    "zeros",
]
