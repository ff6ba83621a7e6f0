"""The largest learning rate at which gradient descent rests on a plateau, as the flow does.

At θ^k the weights of the support are balanced, |u_i| = |v_i| = √|θ_i|, and the Hessian of the loss
in (u, v) has the largest eigenvalue 2 λ_max(D H D) there, with D = diag √|θ| and H the Hessian in θ
on the support. A product off the support adds ±|g_i|: along one of w = u + v and w̃ = u − v it grows
by 1 + η|g_i| a step, as it should, and along the other it changes by 1 − η|g_i|. So descent rests
where the flow does as long as η times the larger of the two, the sharpness of the plateau, is below
2; with momentum β below 2 (1 + β), and below 2 (1 + β)/(1 + 2β) in Nesterov's form (roots of the
recurrence reach −1 there).
"""

import numpy as np
from scipy.linalg import eigh

from dynalyze._core.arrays import FloatArray
from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, LearningRateWarning
from dynalyze.models.protocol import Objective


def sharpness(objective: Objective, theta: FloatArray, field: FloatArray) -> float:
    """Largest curvature in (u, v) that descent meets on a plateau, in 1/flow time.

    Parameters
    ----------
    objective : Objective
        The loss.
    theta, field : ndarray, shape (p,)
        The plateau θ^k, and g there.
    """
    support = np.flatnonzero(theta)
    inactive = float(np.abs(np.delete(field, support)).max(initial=0.0))
    if not support.size:
        return inactive
    root = np.sqrt(np.abs(theta[support]))
    hessian = objective.hessian_columns(theta, support)[support]
    last = support.size - 1
    (largest,) = eigh(
        root[:, None] * hessian * root, eigvals_only=True, subset_by_index=[last, last]
    )
    return max(2 * float(largest), inactive)


def largest_product(momentum: float, *, nesterov: bool) -> float:
    """The learning rate times the sharpness below which descent is stable.

    Raises
    ------
    InvalidInputError
        If `momentum` does not lie in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise InvalidInputError(
            f"momentum={momentum!r} must lie between 0 and 1, as the one of torch.optim.SGD"
        )
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def warn_of_learning_rate(lr: float, limits: FloatArray) -> None:
    """Warn where `lr` reaches the limit of a plateau; `limits` has shape (K+1,)."""
    exceeded = np.flatnonzero(lr >= limits)
    if exceeded.size:
        k = int(exceeded[0])
        warn(
            f"lr={lr:.6g} is too large from plateau {k} on, before stage {k + 1}: gradient descent "
            f"rests there only below {limits[k]:.3g}, see max_learning_rates(), and what is "
            "predicted of the flow does not hold from then on",
            LearningRateWarning,
        )
