"""Oracle for the diagonal linear network: Algorithm 1 in sixty digits.

Written from theory alone with mpmath; it shares no line with the library. Data are taken as the
floats that they are. What the algorithm must count as zero is told by `field_rtol` and by
`rounding`, the correlation that the rounding of the targets can make.
"""

from typing import NamedTuple

import mpmath as mp

mp.mp.dps = 60
_EQUAL = mp.mpf(10) ** -40


class Stages(NamedTuple):
    times: list[float]
    coordinates: list[int]
    signs: list[int]
    theta: list[list[float]]
    status: str


class _Problem:
    def __init__(self, X, y):
        columns = [[mp.mpf(float(v)) for v in column] for column in X.T]
        targets = [mp.mpf(float(v)) for v in y]
        self.p, n = len(columns), len(targets)
        self.gram = [[_dot(a, b) / n for b in columns] for a in columns]
        self.moments = [_dot(a, targets) / n for a in columns]
        self.power = _dot(targets, targets) / n
        self.units = [mp.sqrt(self.gram[i][i]) for i in range(self.p)]

    def field(self, theta):
        active = [i for i in range(self.p) if theta[i]]
        return [
            self.moments[i] - mp.fsum(self.gram[i][j] * theta[j] for j in active)
            for i in range(self.p)
        ]

    def minimum(self, support):
        matrix = mp.matrix([[self.gram[i][j] for j in support] for i in support])
        return list(mp.lu_solve(matrix, mp.matrix([self.moments[i] for i in support])))


def _dot(a, b):
    return mp.fsum(x * y for x, y in zip(a, b, strict=True))


def _limit(problem, theta, signs):
    """Minimum over the signs, by an active-set method that starts at θ."""
    theta, support = list(theta), list(signs)
    while True:
        goal = problem.minimum(support)
        beyond = [k for k, i in enumerate(support) if goal[k] * signs[i] <= 0]
        if beyond:
            parts = {k: theta[support[k]] / (theta[support[k]] - goal[k]) for k in beyond}
            part = min(parts.values())
            for k, i in enumerate(support):
                theta[i] += part * (goal[k] - theta[i])
            for i in [support[k] for k in beyond if parts[k] <= part + _EQUAL]:
                theta[i] = mp.mpf(0)
                support.remove(i)
            continue
        for k, i in enumerate(support):
            theta[i] = goal[k]
        field = problem.field(theta)
        outside = [i for i in signs if i not in support]
        returning = [i for i in outside if field[i] * signs[i] > _EQUAL * problem.units[i]]
        if not returning:
            return theta
        support.append(max(returning, key=lambda i: field[i] * signs[i]))


def exact_stages(X, y, *, field_rtol=1e-9, tie_rtol=1e-9, rounding=1e-10):
    problem = _Problem(X, y)
    p, units = problem.p, problem.units
    natural = mp.sqrt(problem.power)
    at_origin = max(abs(g) / u for g, u in zip(problem.moments, units, strict=True))
    largest = max(abs(g) for g in problem.moments)
    zero = [field_rtol * largest * u / max(units) for u in units]
    found = Stages([], [], [], [], "converged")
    if at_origin <= rounding * natural:
        return found
    theta, b, time = [mp.mpf(0)] * p, [mp.mpf(1)] * p, mp.mpf(0)
    while True:
        field = problem.field(theta)
        waits = {
            i: (b[i] if field[i] > 0 else 2 - b[i]) / abs(field[i])
            for i in range(p)
            if not theta[i] and abs(field[i]) > zero[i]
        }
        if not waits:
            return found
        order = sorted(waits, key=waits.__getitem__)
        j, wait = order[0], waits[order[0]]
        if len(order) > 1 and waits[order[1]] - wait <= tie_rtol * wait:
            return found._replace(status="tie")
        sign = 1 if field[j] > 0 else -1
        time += wait
        b = [b[i] if theta[i] else b[i] - field[i] * wait for i in range(p)]
        b[j] = mp.mpf(1 - sign)
        signs = {i: 1 if theta[i] > 0 else -1 for i in range(p) if theta[i]} | {j: sign}
        theta = _limit(problem, theta, signs)
        found.times.append(float(time))
        found.coordinates.append(j)
        found.signs.append(sign)
        found.theta.append([float(value) for value in theta])
