"""An objective from plain functions, for losses that are known in closed form."""

import numpy as np


class Function:
    """An objective from its loss, its field and its Hessian as plain functions."""

    def __init__(self, n_products, value, field, hessian):
        self.n_products = n_products
        self.product_names = tuple(f"w[{i}]" for i in range(n_products))
        self.value, self._field, self._hessian = value, field, hessian

    def field(self, theta):
        return np.asarray(self._field(theta), dtype=float)

    def value_and_field(self, theta):
        return float(self.value(theta)), self.field(theta)

    def hessian_columns(self, theta, indices):
        return np.asarray(self._hessian(theta), dtype=float)[:, indices]
