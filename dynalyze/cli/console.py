"""What is printed: readable on consoles of few characters, and harmless where nobody reads on."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator

_HANDLER = "dynalyze-readable"
_REPLACEMENTS = {
    **dict.fromkeys("−–—‐‑", "-"),
    **dict.fromkeys("·⊙∗", "*"),
    **dict.fromkeys("‖", "||"),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”″", '"'),
    **{"×": "x", "⁄": "/", "→": "->", "±": "+-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~"},
    **{"⟨": "<", "⟩": ">", "√": "sqrt ", "∞": "inf", "∂": "d", "∈": " in ", "Σ": "sum ", "ß": "ss"},
}


@contextlib.contextmanager
def readable_output() -> Iterator[None]:
    """Write characters that a stream's encoding lacks as ASCII: alpha for α, - for −, ^2 for ²."""
    codecs.register_error(_HANDLER, _replace)
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError, OSError):  # closed, or nobody reads on
                stream.reconfigure(errors=errors)


def show(text: str) -> None:
    """Print to standard output; where its reader has gone, as in ``| head``, print nothing more.

    Raises
    ------
    OSError
        If it cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        abandon_output()
    except OSError:
        abandon_output()
        raise


def complain(text: str) -> None:
    """Print to standard error, if there is one that can be written."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr)


def abandon_output() -> None:
    """Let what is still buffered go nowhere: at its exit Python would try once more to write it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(map(_in_ascii, characters)), error.end


def _in_ascii(character: str) -> str:
    if character in _REPLACEMENTS:
        return _REPLACEMENTS[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK") and "LETTER" in name and " WITH " not in name:
        word = name.rpartition(" ")[2].lower()
        return word.capitalize() if "CAPITAL" in name else word
    tag, _, _ = unicodedata.decomposition(character).partition(" ")
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(
        _REPLACEMENTS.get(part, part) for part in parts if part.isascii() or part in "⁄"
    )
    if not plain:
        return character.encode("ascii", "backslashreplace").decode()
    return {"<super>": "^", "<sub>": "_"}.get(tag, "") + plain
