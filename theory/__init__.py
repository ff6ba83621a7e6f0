"""The results of arXiv 2306.07042, one runnable derivation each.

``python -m theory.flow_equations`` derives eqs. (3)–(6) with SymPy, asserts them, prints the steps
as markdown, and holds the library's own function against what was derived. ``python -m
theory.render`` writes all of them to docs/theory.
"""
