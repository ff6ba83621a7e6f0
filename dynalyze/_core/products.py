"""The two products of an attention head, in the order in which results hold them."""

from dynalyze.errors import InvalidInputError

PRODUCTS = ("W_K W_Q", "W_V W_O")


def product_index(product: int | str) -> int:
    """0 for W_K W_Qᵀ and 1 for W_V W_Oᵀ, from a number or from the name."""
    names: dict[int | str, int] = {0: 0, 1: 1, PRODUCTS[0]: 0, PRODUCTS[1]: 1}
    if product not in names:
        raise InvalidInputError(f"product={product!r} must be one of {', '.join(PRODUCTS)}")
    return names[product]
