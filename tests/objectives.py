"""Small losses for the tests, known in closed form and without data."""

import numpy as np

from dynalyze.models.attention_head import AttentionHead


class Quadratic:
    """L(θ) = ½ (θ − a)ᵀ H (θ − a) times a factor."""

    def __init__(self, a, hessian=None, factor=1.0):
        self.a = np.atleast_1d(np.asarray(a, dtype=float))
        self.hessian = factor * (np.eye(len(self.a)) if hessian is None else np.asarray(hessian))

    @property
    def n_products(self):
        return len(self.a)

    @property
    def product_names(self):
        return tuple(f"w[{i}]" for i in range(len(self.a)))

    def value(self, theta):
        return self.value_and_field(theta)[0]

    def field(self, theta):
        return self.value_and_field(theta)[1]

    def value_and_field(self, theta):
        field = self.hessian @ (self.a - theta)
        return 0.5 * float(field @ (self.a - theta)), field

    def hessian_columns(self, theta, indices):
        return self.hessian[:, indices]


class OnlyObjective:
    """Another objective without what else it knows of itself: its limits take the flow."""

    def __init__(self, objective):
        self.n_products = objective.n_products
        self.product_names = objective.product_names
        self.value = objective.value
        self.field = objective.field
        self.value_and_field = objective.value_and_field
        self.hessian_columns = objective.hessian_columns


class Power:
    """L(a) = (1 − a)^m of one product: a minimum at 1 for even m, an inflection for odd m."""

    n_products, product_names = 1, ("a",)

    def __init__(self, exponent):
        self.exponent = exponent

    def value(self, theta):
        return float((1 - theta[0]) ** self.exponent)

    def field(self, theta):
        return self.exponent * (1 - theta) ** (self.exponent - 1)

    def value_and_field(self, theta):
        return self.value(theta), self.field(theta)

    def hessian_columns(self, theta, indices):
        m = self.exponent
        return np.full((1, len(indices)), m * (m - 1) * (1 - theta[0]) ** (m - 2))


class Transformed:
    """Another objective, its coordinates permuted and their signs flipped: θ_i = s_i θ'_{π_i}."""

    def __init__(self, objective, order, signs):
        self.objective, self.order, self.signs = objective, order, signs

    @property
    def n_products(self):
        return self.objective.n_products

    @property
    def product_names(self):
        return tuple(self.objective.product_names[i] for i in self.order)

    def _inner(self, theta):
        inner = np.empty_like(theta)
        inner[self.order] = self.signs * theta
        return inner

    def value(self, theta):
        return self.objective.value(self._inner(theta))

    def field(self, theta):
        return self.signs * self.objective.field(self._inner(theta))[self.order]

    def value_and_field(self, theta):
        return self.value(theta), self.field(theta)

    def hessian_columns(self, theta, indices):
        columns = self.objective.hessian_columns(self._inner(theta), self.order[indices])
        return self.signs[:, None] * columns[self.order] * self.signs[indices]


class Scaled:
    """Another objective in other units: L(θ) = energy · L'(θ / length)."""

    def __init__(self, objective, length, energy):
        self.objective, self.length, self.energy = objective, length, energy

    @property
    def n_products(self):
        return self.objective.n_products

    @property
    def product_names(self):
        return self.objective.product_names

    def value(self, theta):
        return self.energy * self.objective.value(theta / self.length)

    def field(self, theta):
        return self.energy / self.length * self.objective.field(theta / self.length)

    def value_and_field(self, theta):
        return self.value(theta), self.field(theta)

    def hessian_columns(self, theta, indices):
        columns = self.objective.hessian_columns(theta / self.length, indices)
        return self.energy / self.length**2 * columns


class Exponential(Quadratic):
    """L(θ) = Σ e^{−θ_i}, which falls for ever, as cross-entropy on separable data."""

    def __init__(self, n_products=1):
        super().__init__(np.zeros(n_products))

    def value_and_field(self, theta):
        return float(np.sum(np.exp(-theta))), np.exp(-theta)

    def hessian_columns(self, theta, indices):
        return np.diag(np.exp(-theta))[:, indices]


class Linear(Quadratic):
    """L(θ) = −Σ a_i θ_i, without a minimum."""

    def value_and_field(self, theta):
        return -float(self.a @ theta), self.a.copy()

    def hessian_columns(self, theta, indices):
        return np.zeros((len(self.a), len(indices)))


class Failing(Quadratic):
    """A quadratic that misbehaves from a size of θ on, as `failure` says."""

    def __init__(self, a, failure, size=0.5):
        super().__init__(a)
        self.failure, self.size = failure, size

    def value_and_field(self, theta):
        value, field = super().value_and_field(theta)
        if np.max(np.abs(theta)) < self.size:
            return value, field
        if self.failure == "nan":
            return np.nan, np.full_like(field, np.nan)
        assert self.failure == "interrupt"
        raise KeyboardInterrupt


def small_head(seed=0, d=4, samples=60, tokens=4, noise=0.0):
    """Return an attention head with a random teacher, bound to its data."""
    rng = np.random.default_rng(seed)
    head = AttentionHead(d, threads=1)
    X = rng.standard_normal((samples, tokens, d))
    y = head.predict(rng.standard_normal(2 * d), X)
    return head.bind((X, y + noise * rng.standard_normal(y.shape)))
