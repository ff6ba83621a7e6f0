"""Loss and gradient of the attention head, eq. (1) of arXiv 2306.07042, over chunks of samples.

For one sample with tokens x_a, products p and q, residual r and weight ω:

    S_ab = Σ_i p_i x_ai x_bi,   A = softmax of the rows of S,   M = A X,   r = q ⊙ M − y
    L = ½ ω Σ r²,   ∂L/∂q_i = ω Σ_a r_ai M_ai
    D_ab = Σ_i q_i r_ai x_bi,   E_ab = A_ab (D_ab − Σ_c A_ac D_ac)
    ∂L/∂p_i = ω Σ_ab E_ab x_ai x_bi
"""

import numba
import numpy as np

from dynalyze._typing import FloatArray


@numba.njit(cache=True, nogil=True)
def add_loss_and_gradient(
    X: FloatArray, y: FloatArray, weight: FloatArray, theta: FloatArray, out: FloatArray
) -> None:
    """Add loss (``out[0]``) and gradient (``out[1:]``) of the given samples to `out`."""
    n_samples, n_tokens, d = X.shape
    p = theta[:d]
    q = theta[d:]
    A = np.empty((n_tokens, n_tokens))
    D = np.empty(n_tokens)
    M = np.empty(d)
    for s in range(n_samples):
        x = X[s]
        omega = weight[s]
        for a in range(n_tokens):
            largest = -np.inf
            for b in range(n_tokens):
                total = 0.0
                for i in range(d):
                    total += p[i] * x[a, i] * x[b, i]
                A[a, b] = total
                largest = max(largest, total)
            norm = 0.0
            for b in range(n_tokens):
                A[a, b] = np.exp(A[a, b] - largest)
                norm += A[a, b]
            M[:] = 0.0
            for b in range(n_tokens):
                A[a, b] /= norm
                for i in range(d):
                    M[i] += A[a, b] * x[b, i]
            D[:] = 0.0
            for i in range(d):
                residual = q[i] * M[i] - y[s, a, i]
                out[0] += 0.5 * omega * residual * residual
                out[1 + d + i] += omega * residual * M[i]
                for b in range(n_tokens):
                    D[b] += q[i] * residual * x[b, i]
            mean = 0.0
            for b in range(n_tokens):
                mean += A[a, b] * D[b]
            for b in range(n_tokens):
                E = omega * A[a, b] * (D[b] - mean)
                for i in range(d):
                    out[1 + i] += E * x[a, i] * x[b, i]
