"""Log coordinates: the flow as p equations whose conservation law holds by construction, for any α.

Not in the paper: with c = u(0)² − v(0)², put u + v = √|c| e^z.
"""

import numpy as np
import sympy as sp

from dynalyze.flow.coordinates import BalancedCoordinates, LogCoordinates
from theory.derivation import equation, hold_against, numbers, prove_zero, say, show


def main() -> None:
    t = sp.Symbol("t", real=True)
    c = sp.Symbol("c", positive=True)
    z, g = sp.Function("z")(t), sp.Function("g")(t)
    say("For c > 0 (for c < 0 exchange u with v; the product is the same):")
    u, v = sp.sqrt(c) * sp.cosh(z), sp.sqrt(c) * sp.sinh(z)
    equation("u", u)
    equation("v", v)
    prove_zero(
        "u² − v² = c for every z, and u + v = √c e^z",
        u**2 - v**2 - c,
        (u + v - sp.sqrt(c) * sp.exp(z)).rewrite(sp.exp),
    )
    say("**The flow.** dz/dt = g turns into eq. (4) exactly:")
    moves = {sp.diff(z, t): g}
    prove_zero(
        "du/dt = v g and dv/dt = u g",
        sp.diff(u, t).subs(moves) - v * g,
        sp.diff(v, t).subs(moves) - u * g,
    )
    theta = c * sp.sinh(2 * z) / 2
    equation(r"\theta = uv", theta)
    prove_zero(
        "uv = (c/2) sinh 2z and dθ/dz = c cosh 2z",
        u * v - theta,
        sp.diff(theta, z) - c * sp.cosh(2 * z),
    )

    say(
        """**Any α.** Only log|c| is kept. For z > 0 the product is a sum of exponents and a
        factor near 1, so nothing overflows or vanishes before log|θ| itself is formed:"""
    )
    x, ell = sp.symbols("z ell", real=True)
    stable = sp.exp(2 * x + ell - sp.log(4)) * (1 - sp.exp(-4 * x))
    show(r"\theta = e^{2z + \log|c| - \log 4}\,(1 - e^{-4z})")
    prove_zero(
        "this is (|c|/2) sinh 2z with |c| = e^ℓ",
        (stable - sp.exp(ell) * sp.sinh(2 * x) / 2).rewrite(sp.exp),
    )

    say("**The balanced limit** |c| → 0 on the support, z = ½ s log|θ|, keeps dz/dt = g:")
    y = sp.Function("theta")(t)
    magnitude = sp.log(y) / 2
    prove_zero(
        "for θ > 0, d(½ log θ)/dt = g if dθ/dt = 2θ g",
        sp.diff(magnitude, t).subs(sp.diff(y, t), 2 * y * g) - g,
    )

    say("**The library**, at c = 10⁻⁶ and z = 5/2, −7/3:")
    points = [sp.Rational(5, 2), -sp.Rational(7, 3)]
    C = sp.Rational(1, 10**6)
    chart = LogCoordinates(np.log([1e-6, 1e-6]))
    at = np.array([float(p) for p in points])
    exact = [c * sp.sinh(2 * p) / 2 for p in points]
    hold_against(
        "LogCoordinates.theta", chart.theta(at) * 1e6, numbers([e / C for e in exact], {c: C})
    )
    slope = [c * sp.cosh(2 * p) for p in points]
    hold_against(
        "LogCoordinates.dtheta_dz",
        chart.dtheta_dz(at) * 1e6,
        numbers([e / C for e in slope], {c: C}),
    )
    hold_against("LogCoordinates.z_of_theta", chart.z_of_theta(chart.theta(at)), at)
    balanced = BalancedCoordinates(np.array([1.0, -1.0]))
    hold_against(
        "BalancedCoordinates.theta",
        balanced.theta(np.array([-0.25, 0.75])),
        numbers([sp.exp(-sp.Rational(1, 2)), -sp.exp(-sp.Rational(3, 2))], {}),
    )


if __name__ == "__main__":
    main()
