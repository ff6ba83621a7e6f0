"""The transition of stage B, eq. (11), where it can be solved."""

import numpy as np
import sympy as sp

from dynalyze import predict_stages
from dynalyze.models.linear import DiagonalLinear
from dynalyze.symbolic import diagonal_linear, stages
from theory.derivation import equation, hold_against, prove, prove_zero, say, show


def main() -> None:
    t = sp.Symbol("t", real=True)
    a, rate, eps = sp.symbols("a lambda epsilon", positive=True)
    say(
        """**One product.** Along ψ the weights are balanced, |u| = |v|, and dθ/dt = (u² + v²) g
        = 2|θ| g. For L = (λ/2)(θ − a)², a > 0, from θ = ε:"""
    )
    u, v, g = sp.symbols("u v g", real=True)
    prove_zero(
        "d(uv)/dt = (u² + v²) g, which is 2uv g for u = v",
        sp.expand(u * (u * g) + v * (v * g) - (u**2 + v**2) * g),
        ((u**2 + v**2) * g - 2 * u * v * g).subs(v, u),
    )
    psi = a / (1 + (a / eps - 1) * sp.exp(-2 * rate * a * t))
    equation(r"\psi(t; \varepsilon)", psi)
    prove_zero(
        "ψ' = 2ψ λ(a − ψ) and ψ(0) = ε",
        sp.diff(psi, t) - 2 * psi * rate * (a - psi),
        psi.subs(t, 0) - eps,
    )
    prove("lim ψ = a, whatever ε", sp.limit(psi, t, sp.oo) == a)
    say(
        "Its sign never changes, because θ = 0 is a rest point; with a < 0 from ε > 0 it goes to 0."
    )

    say(
        """**Linear network.** For L = ½θᵀΣθ − rᵀθ the loss falls along ψ, dL/dt = −2 Σ_i |θ_i|
        g_i² ≤ 0, so that ψ comes to rest where g_i = 0 or θ_i = 0. A rest point with θ_i = 0
        attracts only if s_i g_i ≤ 0 (θ_i grows at the rate 2 s_i g_i there). These are the
        Karush–Kuhn–Tucker conditions of"""
    )
    show(r"\min_\theta\ L(\theta) \quad\text{subject to}\quad s_i \theta_i \ge 0")
    theta = sp.symbols("theta_1 theta_2", real=True)
    sigma = sp.Matrix(
        [
            [sp.Symbol("Sigma_11"), sp.Symbol("Sigma_12")],
            [sp.Symbol("Sigma_12"), sp.Symbol("Sigma_22")],
        ]
    )
    r = sp.Matrix(sp.symbols("r_1 r_2"))
    x = sp.Matrix(theta)
    loss = (x.T * sigma * x)[0] / 2 - (r.T * x)[0]
    field = [-sp.diff(loss, entry) for entry in theta]
    sizes = sp.symbols("A_1 A_2", positive=True)  # |θ_i|
    speed = [2 * size * entry for size, entry in zip(sizes, field, strict=True)]
    decay = sum(sp.diff(loss, entry) * s for entry, s in zip(theta, speed, strict=True))
    prove_zero(
        "dL/dt = −2 Σ |θ_i| g_i²",
        sp.expand(decay + 2 * sum(s * f**2 for s, f in zip(sizes, field, strict=True))),
    )

    say(
        """which for a positive definite Σ has one solution. **An example in which a coordinate
        leaves**, worked out exactly:"""
    )
    exact = stages(diagonal_linear([[1, -2, 2], [-2, 9, -6], [2, -6, 5]], [0, 3, -2], 8))
    show(exact.latex())
    sigma3 = sp.Matrix([[1, -2, 2], [-2, 9, -6], [2, -6, 5]])
    rest = sp.Matrix([0, 3, -2]) - sigma3 * sp.Matrix(exact.theta[3])
    equation("g(\\theta^3)", rest.T)
    prove(
        "at θ³ the support has field 0, and the coordinate that left is held by a field against it",
        rest[0] == 0,
        rest[2] == 0,
        rest[1] < 0,
    )

    say("**The library's flow**, on samples with that Σ and r (X = √3 Σ^½ up to a rotation):")
    X = np.sqrt(3) * np.linalg.cholesky(np.array(sigma3, dtype=float)).T
    y = 3 * np.linalg.solve(X.T, [0.0, 3.0, -2.0])
    prediction = predict_stages(DiagonalLinear(3), (X, y))
    hold_against("predict_stages: θ^k", prediction.theta, exact.numeric().theta, tolerance=1e-10)
    hold_against("predict_stages: T_k", prediction.times, exact.numeric().times, tolerance=1e-10)


if __name__ == "__main__":
    main()
