"""Exact Hessian columns of the attention head's loss, over chunks of samples.

With the symbols of `_attention_gradient` and G = X diag(q)² Xᵀ, u_ab = Σ_c A_ac G_bc,
e_ab = D_ab − Σ_c A_ac D_ac, h_ab = u_ab + e_ab − ½ Σ_c A_ac u_ac and W = 2 q ⊙ M − y:

    κ^a_bc = A_ab A_ac (G_bc − h_ab − h_ac) + δ_bc A_ab e_ab
    ∂²L/∂p_j∂p_k = Σ_abc x_aj x_bj κ^a_bc x_ak x_ck
    ∂²L/∂p_j∂q_i = Σ_ab x_aj x_bj A_ab (x_bi − M_ai) W_ai
    ∂²L/∂q_i∂q_i = Σ_a M_ai²

(each times ω). The products x_aj x_bj are symmetric in a and b: the sums run over b ≤ a.
"""

import numba
import numpy as np

from dynalyze._typing import FloatArray, IntArray


@numba.njit(cache=True, nogil=True)
def add_hessian_columns(  # noqa: PLR0912, PLR0917
    X: FloatArray,
    y: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    p_columns: IntArray,
    q_columns: IntArray,
    out: FloatArray,
) -> None:
    """Add the columns of `p_columns` and then `q_columns` to `out`, shape (2d, k)."""
    n_samples, n_tokens, d = X.shape
    n_p = len(p_columns)
    p = theta[:d]
    q = theta[d:]
    for s in range(n_samples):
        x = X[s]
        omega = weight[s]
        S = (x * p) @ x.T
        A = np.empty((n_tokens, n_tokens))
        for a in range(n_tokens):
            A[a] = np.exp(S[a] - S[a].max())
            A[a] /= A[a].sum()
        M = A @ x
        W = 2.0 * q * M - y[s]
        D = ((q * M - y[s]) * q) @ x.T
        G = (x * (q * q)) @ x.T
        u = A @ G
        e = np.empty_like(D)
        h = np.empty_like(D)
        for a in range(n_tokens):
            e[a] = D[a] - (A[a] * D[a]).sum()
            h[a] = u[a] + e[a] - 0.5 * (A[a] * u[a]).sum()
        for a in range(n_tokens):
            for k in range(len(q_columns)):
                i = q_columns[k]
                out[d + i, n_p + k] += omega * M[a, i] * M[a, i]
            for b in range(a + 1):
                z = omega * x[a] * x[b]
                mixed = A[a, b] * (x[b] - M[a]) * W[a]
                if b != a:
                    mixed += A[b, a] * (x[a] - M[b]) * W[b]
                for k in range(n_p):
                    j = p_columns[k]
                    first = A[a, b] * e[a, b] * x[b, j]
                    second = A[b, a] * e[b, a] * x[a, j]
                    for c in range(n_tokens):
                        first += A[a, b] * A[a, c] * (G[b, c] - h[a, b] - h[a, c]) * x[c, j]
                        second += A[b, a] * A[b, c] * (G[a, c] - h[b, a] - h[b, c]) * x[c, j]
                    coupling = x[a, j] * first
                    if b != a:
                        coupling += x[b, j] * second
                    for i in range(d):
                        out[i, k] += coupling * z[i]
                        out[d + i, k] += z[j] * mixed[i]
                for k in range(len(q_columns)):
                    for i in range(d):
                        out[i, n_p + k] += z[i] * mixed[q_columns[k]]
