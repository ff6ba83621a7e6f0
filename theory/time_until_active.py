"""The race of stage A: time until active (8), the winner (9), and the log-scales after it (10)."""

import numpy as np
import sympy as sp

from dynalyze.stages.equations import activation, log_scale, time_until_active
from dynalyze.symbolic.equations import time_until_active as exact_time_until_active
from theory.derivation import equation, hold_against, prove, prove_zero, say, show


def main() -> None:
    b, g, elapsed = sp.symbols("b g Delta", real=True)
    alpha = sp.Symbol("alpha", positive=True)
    say(
        """**When is a product of order 1?** Let w ≈ α^b with w = u + v, and w̃ = u − v. Their
        product w w̃ = u² − v² is conserved and of order α², so w̃ ≈ α^(2 − b), and"""
    )
    show(r"\theta = \tfrac14\left(w^2 - \tilde w^2\right) \approx \alpha^{2b} - \alpha^{4 - 2b}")
    u, v = sp.symbols("u v", real=True)
    prove_zero("uv = ((u + v)² − (u − v)²)/4", u * v - ((u + v) ** 2 - (u - v) ** 2) / 4)
    inside = sp.Rational(1, 3)
    prove(
        "the product vanishes as α → 0 for b strictly between 0 and 2",
        *(
            sp.limit(alpha ** (2 * at) - alpha ** (4 - 2 * at), alpha, 0) == 0
            for at in (inside, 1, 2 - inside)
        ),
    )
    prove(
        "and tends to +1 at b = 0, to −1 at b = 2",
        sp.limit(1 - alpha**4, alpha, 0) == 1,
        sp.limit(alpha**4 - 1, alpha, 0) == -1,
    )

    say("**Eq. (8).** On a plateau b moves as b − g Δ (eq. (7)). It gets to 0 or 2 after")
    to_zero, to_two = (
        sp.solve(b - g * elapsed, elapsed)[0],
        sp.solve(b - g * elapsed - 2, elapsed)[0],
    )
    equation(r"\Delta_{b = 0}", to_zero)
    equation(r"\Delta_{b = 2}", to_two)
    say("of which the first is positive for g > 0, the second for g < 0; in one formula,")
    formula = (b - 1 + sp.sign(g)) / g
    equation(r"\Delta", formula)
    plus, minus = sp.Symbol("g", positive=True), sp.Symbol("g", negative=True)
    prove_zero(
        "(b − 1 + sgn g)/g is the one or the other",
        (formula - to_zero).subs(g, plus),
        (formula - to_two).subs(g, minus),
        exact_time_until_active(b, plus) - formula.subs(g, plus),
        exact_time_until_active(b, minus) - formula.subs(g, minus),
    )

    say(
        """**Eqs. (9), (10).** The product with the least Δ is the first of order 1; every other
        has moved by −g Δ by then. The winner's own b comes out as 0 or 2:"""
    )
    prove_zero(
        "b − g Δ = 1 − sgn g for the winner",
        (b - g * formula - (1 - sp.sign(g))).subs(g, plus),
        (b - g * formula - (1 - sp.sign(g))).subs(g, minus),
    )
    prove(
        "a loser, Δ < Δ_i, stays strictly inside (shown for g > 0: 0 < b − g Δ)",
        sp.ask(
            sp.Q.positive(plus * (b / plus - elapsed)),
            sp.Q.positive(b / plus - elapsed) & sp.Q.positive(plus),
        ),
    )

    say("**The library**, at b = (1, 1/3, 3/2, 1) and g = (2, −3, 1/4, 0):")
    bs = [sp.S.One, sp.Rational(1, 3), sp.Rational(3, 2), sp.S.One]
    gs = [sp.S(2), sp.S(-3), sp.Rational(1, 4), sp.S.Zero]
    waits = [exact_time_until_active(x, y) for x, y in zip(bs, gs, strict=True)]
    equation(r"\Delta", f"({', '.join(sp.latex(wait) for wait in waits)})")
    scales, field = np.array(bs, dtype=float), np.array(gs, dtype=float)
    active = np.zeros(4, dtype=bool)
    found = time_until_active(scales, field, active)
    hold_against("stages.time_until_active", found[:3], waits[:3])
    if not np.isinf(found[3]):
        raise AssertionError("a field of 0 must wait forever")
    winner = activation(found, field)
    if winner is None:
        raise AssertionError("somebody wins")
    hold_against("stages.activation", [winner.coordinate, winner.wait], [0, min(waits)])
    hold_against(
        "stages.log_scale",
        log_scale(scales, field, active, winner.wait),
        [x - y * min(waits) for x, y in zip(bs, gs, strict=True)],
    )


if __name__ == "__main__":
    main()
