"""Every derivation in theory/ runs and asserts its steps; its page in the docs is current."""

from pathlib import Path

import pytest

from theory import render

DOCS = Path(__file__).parents[2] / "docs" / "theory"


@pytest.mark.parametrize("name", render.names())
def test_derivation_holds_and_its_page_is_current(name):
    page = render.page(name)
    assert page.count("✓") >= 2
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page, (
        "docs/theory is not current: run `python -m theory.render`"
    )


def test_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for name in render.names():
        assert f"({name}.md)" in index
