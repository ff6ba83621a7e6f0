import numpy as np
from scipy.integrate import BDF


class Seg:
    def __init__(s, a, b, d):
        s.t_start, s.t_end, s.d = a, b, d

    def z(s, t):
        r = s.d(t)
        return r.T if np.ndim(t) else r


class BdfTmp:
    def __init__(s, obj, chart, z0, tol=1e-5):
        s.o, s.c = obj, chart
        act = np.flatnonzero(chart.support)

        def f(t, z):
            return obj.field(chart.theta(chart.signs * np.minimum(chart.signs * z, 40)))

        def j(t, z):
            J = np.zeros((z.size,) * 2)
            th = chart.theta(z)
            J[:, act] = -obj.hessian_columns(th, act) * chart.dtheta_dz(z)[act]
            return J

        s.b = BDF(f, 0.0, z0, np.inf, jac=j, rtol=1e-10, atol=tol)

    @property
    def t(s):
        return s.b.t

    @property
    def z(s):
        return s.b.y

    @property
    def field(s):
        return s.b.fun(s.b.t, s.b.y)

    def step(s):
        t0 = s.b.t
        m = s.b.step()
        if s.b.status == "failed":
            from dynalyze.errors import FlowError

            raise FlowError(m)
        return Seg(t0, s.b.t, s.b.dense_output())
