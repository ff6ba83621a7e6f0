"""How much of the library one prediction of 8 products runs, counted by a profile.

Counts the distinct functions of the library that are called (comprehensions are none), their files,
and the calls that lead from one file to another. A first prediction warms imports and kernels.
Run ``python -m validation.prediction_walk``, with ``-v`` for the list, in the order of first calls.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import dynalyze
from dynalyze.models import AttentionHead, DiagonalLinear

_ROOT = str(Path(dynalyze.__file__).parent)


def walk(run: Callable[[], object]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Calls of each function of the library, and those that lead from one file to another."""
    calls: Counter[str] = Counter()
    moves: Counter[tuple[str, str]] = Counter()

    def follow(frame: FrameType, event: str, _: Any) -> None:
        code, back = frame.f_code, frame.f_back
        if event != "call" or not code.co_filename.startswith(_ROOT):
            return
        file = code.co_filename[len(_ROOT) + 1 :]
        if not code.co_name.endswith(("comp>", "genexpr>")):
            calls[f"{file} {code.co_qualname}"] += 1
        if back is not None and back.f_code.co_filename.startswith(_ROOT):
            caller = back.f_code.co_filename[len(_ROOT) + 1 :]
            moves[caller, file] += caller != file

    sys.setprofile(follow)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls, +moves


def main() -> None:
    """Print the counts of both predictions."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4, 4))
    head = AttentionHead(4, threads=1)
    table = rng.standard_normal((60, 8))
    problems = {
        "AttentionHead(4)": (head, (X, head.predict(rng.standard_normal(8), X))),
        "DiagonalLinear(8)": (DiagonalLinear(8), (table, table @ rng.standard_normal(8))),
    }
    for name, (model, data) in problems.items():
        predict = lambda model=model, data=data: dynalyze.predict_stages(model, data)  # noqa: E731
        predict()
        calls, moves = walk(predict)
        files = {place.split()[0] for place in calls}
        print(f"{name}: {len(calls)} functions in {len(files)} files, {moves.total()} moves")
        rooms = Counter("/".join(place.split()[0].split("/")[:-1]) or "." for place in calls)
        print("  " + ", ".join(f"{room} {number}" for room, number in sorted(rooms.items())))
        if "-v" in sys.argv:
            for place, number in calls.items():
                print(f"  {number:6d}  {place}")
            for (caller, file), number in moves.most_common(20):
                print(f"  {number:6d}  {caller} → {file}")


if __name__ == "__main__":
    main()
