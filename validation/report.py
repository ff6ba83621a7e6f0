"""Reports: markdown pages under docs/, each with the command and the machine behind its numbers."""

import importlib
import os
import pkgutil
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent.parent / "docs"


def environment(packages: Sequence[str] = ("numpy", "scipy", "numba")) -> str:
    """One line: processor, cores, Python and the versions of `packages`."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores; Python "
        f"{platform.python_version()}, {', '.join(versions)}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a markdown table; numbers should come formatted."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write(
    page: str,
    title: str,
    body: str,
    *,
    module: str,
    packages: Sequence[str] = ("numpy", "scipy", "numba"),
) -> Path:
    """Write docs/`page`, print it and return its path.

    Parameters
    ----------
    page : str
        Path under docs/, such as ``"benchmarks/head_gradient.md"``.
    title : str
        First heading.
    body : str
        Markdown.
    module : str
        Module that anyone can run to repeat it, as ``python -m MODULE``.
    packages : sequence of str
        Whose versions matter.
    """
    text = (
        f"# {title}\n\nWritten by `python -m {module}`.\n\nMachine: {environment(packages)}.\n\n"
        f"{body.strip()}\n"
    )
    path = DOCS / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
    return path


def run_all(package: ModuleType, *, skip: Sequence[str] = ()) -> None:
    """Call ``main()`` of every module of `package`, in alphabetical order."""
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg or info.name.startswith("_") or info.name in skip:
            continue
        name = f"{package.__name__}.{info.name}"
        started = time.monotonic()
        print(f"== {name}", flush=True)
        importlib.import_module(name).main()
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
