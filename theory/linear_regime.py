"""The linear regime, eq. (7): near a stationary point every inactive weight grows exponentially.

While inactive products are negligible the field stays at its value g = g(θ^k), and (6) is linear.
"""

import numpy as np
import sympy as sp

from dynalyze.flow.coordinates import LogCoordinates
from dynalyze.stages.equations import log_scale
from theory.derivation import equation, hold_against, numbers, prove_zero, say, show


def main() -> None:
    t, g, b0 = sp.symbols("t g b", real=True)
    w0, alpha = sp.symbols("w_0 alpha", positive=True)
    c = sp.Symbol("c", real=True, nonzero=True)
    say("**Eq. (7).** With g frozen, dw/dt = g w is solved by an exponential:")
    w = w0 * sp.exp(g * t)
    equation("w(t)", w)
    prove_zero("w' = g w and w(0) = w_0", sp.diff(w, t) - g * w, w.subs(t, 0) - w0)

    say("By (6) the two factors, and their product, are then known for all t of the plateau:")
    u, v = (w + c / w) / 2, (w - c / w) / 2
    show(r"\theta(t) = u v = \tfrac14\left(w^2 - \frac{c^2}{w^2}\right)")
    prove_zero(
        "u' = g v, v' = g u and uv = (w² − c²/w²)/4",
        sp.diff(u, t) - g * v,
        sp.diff(v, t) - g * u,
        u * v - (w**2 - c**2 / w**2) / 4,
    )

    say(
        """**On the logarithmic scale.** With w_0 = α^b and rescaled time T = t / log(1/α), the
        exponent moves at the constant rate −g:"""
    )
    T = sp.Symbol("T", positive=True)
    scaled = w.subs({w0: alpha**b0, t: T * sp.log(1 / alpha)})
    exponent = sp.simplify(sp.expand_log(sp.log(scaled) / sp.log(alpha), force=True))
    equation(r"\log_\alpha w", exponent)
    prove_zero("log_α w = b − g T, which is eq. (10)", exponent - (b0 - g * T))

    say("**The library**, at c = −10⁻⁶, w_0 = 2·10⁻³, g = −3/2, t = 4:")
    values = {c: -sp.Rational(1, 10**6), w0: sp.Rational(1, 500), g: -sp.Rational(3, 2), t: 4}
    # w = √|c| e^z, so the log coordinate starts at log(w_0/√|c|) and drifts by g t
    chart = LogCoordinates(np.log([1e-6]))
    z = np.log([2e-3 / 1e-3]) + np.array([-1.5]) * 4
    hold_against("LogCoordinates.theta", chart.theta(z), numbers([u * v], values))
    after = log_scale(np.array([1.0]), np.array([-1.5]), np.array([False]), 0.25)
    hold_against(
        "stages.log_scale", after, numbers([exponent], {b0: 1, g: -sp.Rational(3, 2), T: 0.25})
    )


if __name__ == "__main__":
    main()
