"""The flow by diffrax, in an interpreter that has it: a request on stdin, results on stdout."""

import json
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
MOST_STEPS = 200_000


def main() -> None:
    request = json.load(sys.stdin)
    X, y = jnp.array(request["X"]), jnp.array(request["y"])
    log_abs_c, z0 = jnp.array(request["log_abs_c"]), jnp.array(request["z0"])
    end, threshold = request["end"], request["threshold"]
    d = X.shape[2]

    def loss(theta):
        logits = (X * theta[:d]) @ X.transpose(0, 2, 1)
        outputs = jax.nn.softmax(logits, axis=-1) @ (X * theta[d:])
        return 0.5 * jnp.sum((outputs - y) ** 2) / X.shape[0]

    def theta_of(z):
        size = jnp.abs(z)
        exponent = 2 * size + log_abs_c - jnp.log(4.0)
        return jnp.sign(z) * jnp.exp(jnp.minimum(exponent, 50.0)) * -jnp.expm1(-4 * size)

    field = jax.grad(lambda theta: -loss(theta))
    term = diffrax.ODETerm(lambda t, z, args: field(theta_of(z)))
    times = jnp.linspace(0.0, end, 100_001)

    def solve(solver, tol):
        return diffrax.diffeqsolve(
            term,
            solver,
            0.0,
            end,
            None,
            z0,
            stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=tol),
            saveat=diffrax.SaveAt(ts=times),
            max_steps=MOST_STEPS,
            throw=False,
        )

    results = []
    for solver, stages in ((diffrax.Tsit5(), 6), (diffrax.Kvaerno5(), None)):
        for tol in (1e-4,):
            compiled = jax.jit(lambda tol, solver=solver: solve(solver, tol))
            started = time.perf_counter()
            compiled(tol).ys.block_until_ready()
            first = time.perf_counter() - started
            started = time.perf_counter()
            solution = compiled(tol)
            solution.ys.block_until_ready()
            seconds = time.perf_counter() - started
            good = solution.result == diffrax.RESULTS.successful
            steps = int(solution.stats["num_steps"])
            crossings = None
            if good:
                sizes = np.abs(np.asarray(theta_of(solution.ys))) - threshold
                rows, columns = np.nonzero(sizes[:-1] * sizes[1:] < 0)
                part = sizes[rows, columns] / (sizes[rows, columns] - sizes[rows + 1, columns])
                t = np.asarray(times)[rows] + part * end / 100_000
                signs = np.sign(sizes[rows + 1, columns]).astype(int)
                crossings = [t.tolist(), columns.tolist(), signs.tolist()]
            results.append(
                {
                    "solver": type(solver).__name__,
                    "tol": f"{tol:.0e}",
                    "steps": steps,
                    "gradients": stages * steps if stages else "implicit stages, not counted",
                    "seconds": seconds,
                    "compile": first - seconds,
                    "crossings": crossings,
                    "status": "finished" if good else f"no end within {MOST_STEPS} steps",
                }
            )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
