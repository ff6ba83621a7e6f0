"""Write every derivation to docs/theory: ``python -m theory.render``."""

import contextlib
import importlib
import io
import pkgutil
from pathlib import Path

import theory

DOCS = Path(__file__).parent.parent / "docs" / "theory"
# in the order in which they build on one another
ORDER = (
    "flow_equations",
    "linear_regime",
    "time_until_active",
    "erratum_b0",
    "limit_point",
    "lemmas_d1_to_d3",
    "lemma_d4",
    "log_coordinates",
    "finite_alpha_timing",
)
_HELPERS = {"derivation", "render"}


def names() -> tuple[str, ...]:
    """Names of the derivations, in their order; every module of the package must be in it."""
    found = {info.name for info in pkgutil.iter_modules(theory.__path__)} - _HELPERS
    if found != set(ORDER):
        raise ValueError(f"ORDER and the folder differ in {sorted(found ^ set(ORDER))}")
    return ORDER


def page(name: str) -> str:
    """Run the derivation `name` and return what it prints, as a markdown page."""
    module = importlib.import_module(f"theory.{name}")
    title, _, rest = (module.__doc__ or "").strip().partition("\n")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        module.main()
    introduction = f"{rest.strip()}\n\n" if rest.strip() else ""
    return (
        f"# {title.rstrip('.')}\n\nWritten by `python -m theory.{name}`, which asserts every ✓. "
        "Equation numbers are those of [arXiv 2306.07042](https://arxiv.org/abs/2306.07042) v1.\n\n"
        f"{introduction}{output.getvalue().strip()}\n"
    )


def main() -> None:
    """Write all pages and their index."""
    DOCS.mkdir(parents=True, exist_ok=True)
    index = ["# Theory, derived and checked\n", "Rendered by `python -m theory.render`.\n"]
    for name in names():
        text = page(name)
        (DOCS / f"{name}.md").write_text(text, encoding="utf-8")
        index.append(f"- [{text.splitlines()[0].removeprefix('# ')}]({name}.md)")
        print(f"docs/theory/{name}.md")
    (DOCS / "README.md").write_text("\n".join(index) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
