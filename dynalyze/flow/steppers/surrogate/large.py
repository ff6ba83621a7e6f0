"""The surrogate flow of very many active coordinates, followed by LSODA.

RODAS factorizes a k × k matrix in every inner step. Beyond some size that is dearer than all else,
while the flow of so many coordinates at once is hardly ever stiff: LSODA then integrates without
any matrix, and turns to its stiff method where they come to rest.
"""

import numpy as np
from scipy.integrate import LSODA

from dynalyze._core.arrays import FloatArray
from dynalyze.flow.steppers.surrogate.path import (
    ERROR_LIMIT,
    FAILED,
    REACHED_END,
    THRESHOLD,
    Limits,
    Path,
    accumulate,
    approach,
    predicted_error,
)
from dynalyze.flow.steppers.surrogate.rosenbrock import Surrogate

MANY = 128  # active coordinates from which LSODA is the faster
_SHARE = 1.0  # of the tolerance of an inner step, for LSODA
_PARTS = 4  # cubic pieces of one of its steps
_MOST = 100_000  # of them in a path
_THIRDS = np.array([1 / 3, 2 / 3])


def follow_many(  # noqa: PLR0915 — what a step of LSODA shares with the next is local
    flow: Surrogate, s: float, duration: float, first_step: float, tol: float, limits: Limits
) -> Path:
    """Do what `path.follow` does."""
    p, active = flow.up.size, flow.active
    terms = len(flow.newton)

    def parts(y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        grown = np.exp(np.minimum(flow.up[active] + 2 * y[active], 200.0))
        shrunk = np.exp(np.minimum(flow.down[active] - 2 * y[active], 200.0))
        at = min(y[p], flow.s_last)
        value: FloatArray = flow.newton[-1]
        slope: FloatArray = np.zeros(p)
        for m in range(terms - 2, -1, -1):
            slope = slope * (at - flow.nodes[m]) + value
            value = value * (at - flow.nodes[m]) + flow.newton[m]
        theta = grown - shrunk
        rates = value - flow.columns @ theta
        rates[np.abs(rates) < flow.floor] = 0.0
        slope = slope if y[p] < flow.s_last else 0 * slope
        return rates, theta, 2 * (grown + shrunk), slope

    def rate(_: float, y: FloatArray) -> FloatArray:
        rates, _theta, steep, _slope = parts(y)
        return np.append(rates, np.linalg.norm(steep * rates[active]))

    def jacobian(_: float, y: FloatArray) -> FloatArray:
        rates, theta, steep, slope = parts(y)
        matrix = np.zeros((p + 1, p + 1))
        matrix[:p, active] = -flow.columns * steep
        matrix[:p, p] = slope
        moving = steep * rates[active]
        speed = np.linalg.norm(moving)
        if speed > 0:
            along = moving * steep / speed
            matrix[p] = along @ matrix[active]
            matrix[p, active] += 4 * theta * rates[active] * moving / speed
        return matrix

    y = np.append(np.zeros(p), s)
    solver = LSODA(
        rate,
        0.0,
        y,
        duration,
        rtol=2.3e-14,
        atol=max(_SHARE * tol, 1e-14),
        jac=jacobian,
        max_step=1e200,
    )
    t, values, rates, bends = [0.0], [y], [rate(0.0, y)], []
    integrals, sums = np.zeros((3, limits.sizes.size)), np.zeros((3, limits.sizes.size))
    status, best = 0, 1
    while status == 0:
        solver.step()
        if solver.status == "failed" or not solver.t > t[-1]:
            status = FAILED
            break
        dense, end = solver.dense_output(), float(solver.t)
        part = (end - t[-1]) / _PARTS
        while status == 0 and t[-1] < end:
            left, before = t[-1], values[-1]
            right = left + part if left + 1.5 * part < end else end
            inner, new = dense(left + (right - left) * _THIRDS).T, dense(right)
            # the cubic through four values
            bent = inner - np.array([2 * before + new, before + 2 * new]) / 3
            cubic = 13.5 * (bent[1] - bent[0])
            quadratic = 4.5 * bent[0] - cubic / 3
            at = np.array([before[p], new[p], quadratic[p], cubic[p]])
            accumulate(integrals, sums, right - left, at, flow.nodes, limits.resolution)
            predicted, reached = 0.0, False
            if limits.free:
                fraction, reached = approach(flow, before, new, limits.thresholds)
                predicted, best = predicted_error(sums, float(new[p]), limits)
                if fraction < 1.0 or predicted > 1.3:
                    part = (right - left) * (fraction if fraction < 1.0 else 0.5)
                    continue
            integrals, sums = sums, integrals
            t.append(right)
            values.append(new)
            rates.append((new - before - quadratic - cubic) / (right - left))
            bends.append((quadratic, cubic))
            if reached:
                status = THRESHOLD
            elif predicted > 0.6:
                status = ERROR_LIMIT
        if status == 0 and solver.status == "finished":
            status = REACHED_END
        if len(t) > _MOST:
            status = FAILED
    return Path(
        status,
        np.array(t),
        np.array(values),
        np.array(rates)[:, :p],
        np.array([bend[0] for bend in bends]).reshape(-1, p + 1),
        np.array([bend[1] for bend in bends]).reshape(-1, p + 1),
        integrals,
        best,
        first_step,
    )
