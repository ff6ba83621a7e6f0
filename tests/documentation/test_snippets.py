"""Every Python block of the README and of docs/ runs, page by page, from top to bottom."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if BLOCK.search(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_run(page, tmp_path, monkeypatch):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "__snippet__"}
    for match in BLOCK.finditer(text):
        line = text[: match.start(1)].count("\n")
        # the blank lines make a traceback point at the page's own line
        code = compile("\n" * line + match[1], str(page), "exec")
        exec(code, names)
    plt.close("all")


def test_readme_has_snippets():
    assert ROOT / "README.md" in PAGES
