"""Models and losses given as SymPy formulas, compiled to kernels."""
