"""Jump times at finite α, to o(1) instead of o(log 1/α), where everything can be solved.

Not in the paper: the leading order t_k = T_k log(1/α) leaves out what the transition itself takes,
and how far the others drift meanwhile. Both are integrals along the orbit ψ of eq. (11).
"""

import numpy as np
import sympy as sp

from dynalyze import Initialization, predict_stages
from dynalyze.models.linear import DiagonalLinear
from dynalyze.symbolic import ScalarProduct
from theory.derivation import equation, hold_against, numbers, prove_zero, say, show


def main() -> None:
    two_products(*one_product())


def one_product() -> tuple[sp.Expr, dict[str, sp.Symbol]]:
    a, lam, eps, x = sp.symbols("a lambda epsilon theta", positive=True)
    say("**One product**, L = (λ/2)(θ − a)², a > 0. Plateau: z moves at λa from z_0 until θ = ε,")
    z0, ell = sp.symbols("z_0 ell", real=True)  # ℓ = log|c|
    plateau = ((sp.log(4 * eps) - ell) / 2 - z0) / (lam * a)
    equation("t_A", plateau)
    say("as θ = (|c|/2) sinh 2z ≈ e^(2z) |c|/4. Transition: the logistic orbit takes from ε to θ")
    orbit = sp.log(x * (a - eps) / (eps * (a - x))) / (2 * lam * a)
    equation("t_B", orbit)
    prove_zero(
        "dt_B/dθ = 1/(2λθ(a − θ)) and t_B = 0 at θ = ε",
        sp.diff(orbit, x) - 1 / (2 * lam * x * (a - x)),
        orbit.subs(x, eps),
    )
    together = (sp.log(4 * a * x / (a - x)) - ell) / 2 / (lam * a) - z0 / (lam * a)
    say("The sum does not depend on ε as ε → 0:")
    equation("t", together)
    difference = sp.simplify(sp.exp(sp.expand(2 * lam * a * (plateau + orbit - together))))
    prove_zero("t_A + t_B − t = log(1 − ε/a)/(2λa), which tends to 0", difference - (1 - eps / a))

    say(
        """**Against the exact solution** of the Riccati equation (`symbolic.ScalarProduct`),
        with a = 3/2, λ = 1, θ(0) = 0.2·α², |c| = 0.5·α², at θ = 1/2:"""
    )
    R = sp.Rational
    rows = ["| α | exact t | t | t − exact |", "|---|---|---|---|"]
    for power in (2, 4, 8):
        alpha = R(1, 10**power)
        c, start = alpha**2 / 2, alpha**2 / 5
        scalar = ScalarProduct(R(3, 2), c, start)
        exact = scalar.crossing_time(R(1, 2)).evalf(40, maxn=2000)
        values = {a: R(3, 2), lam: 1, x: R(1, 2), ell: sp.log(c), z0: sp.asinh(2 * start / c) / 2}
        estimate = together.subs(values).evalf(40)
        rows.append(
            f"| 1e-{power} | {float(exact):.12f} | {float(estimate):.12f} "
            f"| {float(estimate - exact):.1e} |"
        )
        prove_quietly(abs(estimate - exact) < 20 * alpha**2 * (1 + power))
    print("\n".join(rows) + "\n")
    say(
        """The error is of order α² log(1/α), against a correction to the leading order that
        stays O(1)."""
    )

    return together, {"a": a, "lam": lam, "x": x, "z0": z0, "ell": ell}


def two_products(together: sp.Expr, of: dict[str, sp.Symbol]) -> None:
    R = sp.Rational
    a, lam, x, z0, ell = (of[name] for name in ("a", "lam", "x", "z0", "ell"))
    say(
        """**Two products.** While product 1 is learned, product 2 of a correlated linear
        network feels g_2 = r_2 − Σ_12 θ_1(s). The logistic θ_1 integrates to"""
    )
    s, half, r1, s11, s12, r2 = sp.symbols("s t_h r_1 Sigma_11 Sigma_12 r_2", positive=True)
    logistic = (r1 / s11) / (1 + sp.exp(-2 * r1 * (s - half)))
    integral = sp.log(1 + sp.exp(2 * r1 * (s - half))) / (2 * s11)
    equation(r"\int \theta_1\, ds", integral)
    prove_zero(
        "its derivative is θ_1, which solves θ_1' = 2θ_1 (r_1 − Σ_11 θ_1)",
        sp.diff(integral, s) - logistic,
        sp.diff(logistic, s) - 2 * logistic * (r1 - s11 * logistic),
    )
    say(
        """(t_h is where θ_1 is half its end). Long after, this is (r_1/Σ_11)(s − t_h): as if
        the jump were sharp, at t_h. So z_2 is piecewise linear with its corner there, and
        product 2 has size θ when z_2 = ½ log(4θ/|c_2|):"""
    )
    c2, z20 = sp.symbols("ell_2 z_20", real=True)
    t2 = sp.Symbol("t_2", real=True)
    drift = z20 + r2 * t2 - s12 * r1 / s11 * (t2 - half)
    corner = s12 * r1 / s11
    second = ((sp.log(4 * x) - c2) / 2 - z20 - corner * half) / (r2 - corner)
    equation("t_2", second)
    prove_zero("at t_2 the size is θ", drift.subs(t2, second) - (sp.log(4 * x) - c2) / 2)
    half_time = ((sp.log(4 * r1 / s11) - ell) / 2 - z0) / r1
    say("with t_h from the formula for one product at θ = a/2, a = r_1/Σ_11, λ = Σ_11:")
    equation("t_h", half_time)
    prove_zero(
        "that is t above at θ = a/2",
        sp.expand_log(
            half_time - together.subs({x: a / 2}).subs({a: r1 / s11, lam: s11}), force=True
        ),
    )

    say("**The library**: `predict_stages(..., init=...)` and `jump_times`, at α = 10⁻¹²:")
    X = np.sqrt(2) * np.linalg.cholesky(np.array([[2.0, 0.5], [0.5, 1.0]])).T
    y = 2 * np.linalg.solve(X.T, [1.5, 0.9])
    init = Initialization(np.array([1.0, 0.7]), np.array([0.4, -0.2]), log10_alpha=-12)
    prediction = predict_stages(DiagonalLinear(2), (X, y), init=init)
    first = {a: R(3, 4), lam: 2, x: R(3, 10), ell: float(init.log_abs_c[0]), z0: float(init.z0[0])}
    hold_against(
        "jump_times (stage 1, at θ = 0.3)",
        prediction.jump_times(0.3)[:1],
        numbers([together], first),
        tolerance=2e-5,
    )
    both = {r1: R(3, 2), s11: 2, s12: R(1, 2), r2: R(9, 10), ell: first[ell], z0: first[z0]}
    both |= {c2: float(init.log_abs_c[1]), z20: float(init.z0[1]), x: R(1, 10**5)}
    hold_against(
        "jump_times (stage 2, at θ = 1e-5)",
        prediction.jump_times(1e-5)[1:],
        numbers([second.subs(half, half_time)], both),
        tolerance=2e-5,
    )
    leading = -init.log10_alpha * np.log(10) * prediction.times[1]
    corrected = numbers([second.subs(half, half_time)], both)[0]
    show(
        rf"\text{{leading order }} T_2 \log(1/\alpha) = {leading:.3f},\quad "
        rf"\text{{with the corrections }} t_2 = {corrected:.3f}"
    )


def prove_quietly(condition: object) -> None:
    if condition not in (True, sp.true):
        raise AssertionError("the estimate is not that good")


if __name__ == "__main__":
    main()
