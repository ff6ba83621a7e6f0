"""An erratum: Algorithm 1 starts from b⁰ = 1, not from b⁰ = 0 as its pseudocode prints."""

import numpy as np
import sympy as sp

from dynalyze import predict_stages
from dynalyze.models.linear import DiagonalLinear
from dynalyze.stages.equations import initial_log_scale
from dynalyze.symbolic import ScalarProduct
from dynalyze.symbolic.equations import time_until_active
from theory.derivation import equation, hold_against, prove, say, show


def main() -> None:
    alpha, w0, size = sp.symbols("alpha w_0 G", positive=True)
    say("**The definition.** b is the exponent of w = u + v, and w(0) = α w_0 with w_0 fixed:")
    exponent = sp.expand_log(sp.log(alpha * w0) / sp.log(alpha), force=True)
    equation(r"\log_\alpha w(0)", exponent)
    prove("its limit is 1", sp.limit(exponent.subs(w0, 3), alpha, 0) == 1)

    say("**What b⁰ = 0 would mean.** In eq. (8), for a field g = ±G:")
    equation(r"\Delta\,(b^0 = 0,\ g = G)", time_until_active(0, size))
    equation(r"\Delta\,(b^0 = 0,\ g = -G)", time_until_active(0, -size))
    equation(r"\Delta\,(b^0 = 1,\ g = \pm G)", time_until_active(1, size))
    prove(
        "with b⁰ = 0 every coordinate of positive field would be active at once; with b⁰ = 1 the "
        "first time is 1/|g|, as the paper's own section 4.1.1 has it",
        time_until_active(0, size) == 0,
        time_until_active(0, -size) == 2 / size,
        time_until_active(1, size) == 1 / size,
        time_until_active(1, -size) == 1 / size,
    )

    say(
        """**What the flow does.** The exact time at which one product, L = (θ − a)²/2 with g(0)
        = a, is half learned, divided by log(1/α), at a = ±2:"""
    )
    R = sp.Rational
    a, c, start = sp.symbols("a c theta_0", real=True)
    half_learned = ScalarProduct(a, c, start).crossing_time(a / 2)
    rows = ["| α | a = 2 | a = −2 |", "|---|---|---|"]
    last: list[float] = []
    for power in (10, 100, 300):
        scale = R(1, 10) ** power
        last = []
        for value in (2, -2):
            values = {a: value, c: scale**2 / 2, start: scale**2 / 5}
            time = half_learned.evalf(20, subs=values, maxn=40 * power + 100)
            last.append(float(time / (power * sp.log(10)).evalf(20)))
        rows.append(f"| 1e-{power} | {last[0]:.5f} | {last[1]:.5f} |")
    print("\n".join(rows) + "\n")
    show(r"\to \frac{1}{|g(0)|} = \frac12,\quad\text{neither } 0 \text{ nor } \frac{2}{|g(0)|} = 1")
    if max(abs(value - 0.5) for value in last) > 2e-3:
        raise AssertionError("the exact times do not tend to 1/|g|")

    say("**The library** starts from 1:")
    hold_against("stages.recursion.initial_log_scale", initial_log_scale(3), np.ones(3))
    prediction = predict_stages(
        DiagonalLinear(2), (np.sqrt(2) * np.eye(2), np.sqrt(2) * np.array([2.0, -3.0]))
    )
    hold_against("predict_stages: T_1, T_2", prediction.times, [R(1, 3), R(1, 2)])


if __name__ == "__main__":
    main()
