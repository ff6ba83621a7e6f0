"""Lemmas D.1–D.3: what the log-scale of w = u + v says about the size and sign of u and v.

With w̃ = u − v the conservation law reads w w̃ = c, and |c| = C α² for a constant C that depends on
the initialization alone. Let w = α^b, so that w̃ = ±C α^(2 − b).
"""

import numpy as np
import sympy as sp

from dynalyze import Initialization
from dynalyze.flow.coordinates import LogCoordinates
from theory.derivation import prove, prove_zero, say, show


def main() -> None:
    delta, C = sp.symbols("delta C", positive=True)
    u, v = sp.symbols("u v", real=True)
    prove_zero("(u + v)(u − v) = u² − v² = c", (u + v) * (u - v) - (u**2 - v**2))
    show(r"w = \alpha^{b},\quad |\tilde w| = C \alpha^{2-b},\quad u, v = \tfrac12 (w \pm \tilde w)")

    say(
        """**Lemma D.1.** *If δ < b < 2 − δ, then max(|u|, |v|) ≤ α^δ for small α*: both
        exponents, b and 2 − b, exceed δ, and |u|, |v| ≤ (w + |w̃|)/2. The worst case is at the
        ends of the interval; with a margin μ, b = δ + μ:"""
    )
    mu, alpha = sp.symbols("mu alpha", positive=True)

    def ratio(b: sp.Expr) -> sp.Expr:
        return sp.powsimp(sp.expand((alpha**b + C * alpha ** (2 - b)) / (2 * alpha**delta)))

    show(r"\frac{w + |\tilde w|}{2\alpha^\delta} = " + sp.latex(ratio(delta + mu)))
    special = {delta: sp.Rational(1, 3), mu: sp.Rational(1, 10)}
    prove(
        "this tends to 0 at both ends and in the middle (at δ = 1/3, μ = 1/10, any C)",
        *(
            sp.limit(ratio(b).subs(special), alpha, 0) == 0
            for b in (delta + mu, sp.S.One, 2 - delta - mu)
        ),
    )

    say(
        """**Lemma D.2.** *If b < −δ or b > 2 + δ, then max(|u|, |v|) ≥ 1 for small α*: in the
        first case w ≥ α^(−δ) → ∞, in the second |w̃| ≥ C α^(−δ) → ∞, and max(|u|, |v|) ≥ max(w,
        |w̃|)/2:"""
    )
    prove(
        "max(w, |w̃|)/2 → ∞ in both cases",
        sp.limit(alpha ** (-sp.Rational(1, 3)) / 2, alpha, 0) == sp.oo,
        sp.limit(C * alpha ** (-sp.Rational(1, 3)) / 2, alpha, 0) == sp.oo,
    )
    prove_zero(
        "u = (w + w̃)/2, v = (w − w̃)/2, so w = u + v ≤ 2 max(|u|, |v|), and so is |w̃|",
        u - ((u + v) + (u - v)) / 2,
        v - ((u + v) - (u - v)) / 2,
    )

    say(
        """**Lemma D.3.** *If b < 1 − δ, u and v have the same sign; if b > 1 + δ, opposite
        signs*, for small α: uv = (w² − w̃²)/4, so the sign is that of w − |w̃|, and"""
    )
    show(r"\frac{|\tilde w|}{w} = C \alpha^{2 - 2b}")
    quotient = C * alpha ** (2 - 2 * sp.Symbol("b"))
    prove(
        "|w̃|/w → 0 for b = 1 − δ and → ∞ for b = 1 + δ (at δ = 1/5)",
        sp.limit(quotient.subs(sp.Symbol("b"), sp.Rational(4, 5)), alpha, 0) == 0,
        sp.limit(quotient.subs(sp.Symbol("b"), sp.Rational(6, 5)), alpha, 0) == sp.oo,
    )

    say(
        """**The library** holds u and v only through z = log(w/√|c|). At α = 10⁻⁴⁰⁰, far below
        the range of floating point, from b = 1/10 to 19/10:"""
    )
    init = Initialization(np.array([1.0, 0.4]), np.array([0.3, -2.0]), log10_alpha=-400)
    chart = LogCoordinates(init.log_abs_c)
    log_alpha = -400 * np.log(10)
    for b in (0.1, 0.5, 0.9, 1.1, 1.5, 1.9):
        z = b * log_alpha - 0.5 * init.log_abs_c
        log_theta, sign = chart.log_abs_theta(z), np.sign(z)
        expected = 2 * min(b, 2 - b)
        if not np.all(np.abs(log_theta / log_alpha - expected) < 0.01):
            raise AssertionError(f"|θ| is of order α^{expected}, not {log_theta / log_alpha}")
        if not np.all(sign == np.sign(1 - b)):
            raise AssertionError("the sign is that of Lemma D.3")
    print("- ✓ `LogCoordinates`: |θ| = α^(2 min(b, 2 − b)) and its sign is that of 1 − b\n")


if __name__ == "__main__":
    main()
