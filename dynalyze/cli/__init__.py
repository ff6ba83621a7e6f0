"""The command ``dynalyze``: one module per subcommand, listed in `COMMANDS`.

A subcommand module has ``add_parser(subparsers)``, which declares its arguments and sets
``run``, a function of the parsed arguments that returns the exit code. Numerical packages are
imported inside ``run``, so that ``--help`` is instant.
"""

import argparse
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dynalyze import __version__
from dynalyze.cli import compare, console, output, predict, simulate, track, train, warmup
from dynalyze.errors import DynalyzeError, DynalyzeWarning

COMMANDS = (predict, simulate, compare, train, track, warmup)

EXIT_CODES = """\
exit codes:
  0    finished
  2    bad input; one line on standard error says which, and the remedy
  3    ended before the last stage: a tie, no limit point or a budget; what was found is printed
  130  interrupted; predict and simulate print and save what was found
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes -1e3 for a number, not for an option."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._negative_number_matcher = re.compile(
            r"-(inf|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)$", re.IGNORECASE
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = _Parser(
        prog="dynalyze",
        description="Predict, simulate and track the stages in which networks with product "
        "weights learn.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dynalyze {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    with console.readable_output():
        return _run(build_parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings(arguments.command, warnings.showwarning)
            output.check_output(arguments)
            return int(arguments.run(arguments))
    except (DynalyzeError, OSError) as error:
        message = " ".join(_text(error).split())
        console.complain(f"dynalyze {arguments.command}: error: {message}")
        return 2
    except KeyboardInterrupt:
        console.complain(f"dynalyze {arguments.command}: interrupted")
        return 130


def _text(error: Exception) -> str:
    """What is wrong, without the error's number."""
    if isinstance(error, OSError) and error.filename is not None:
        missing = isinstance(error, FileNotFoundError)
        return f"{error.filename}: {'no such file' if missing else error.strerror}"
    return str(error)


def _one_line_warnings(command: str, otherwise: Callable[..., None]) -> Callable[..., None]:
    """`warnings.showwarning` that prints the library's own warnings as it prints errors."""

    def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
        if issubclass(category, DynalyzeWarning):
            console.complain(f"dynalyze {command}: warning: {message}")
        else:
            otherwise(message, category, *args, **options)

    return show
