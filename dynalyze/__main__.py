"""``python -m dynalyze`` and the command ``dynalyze``: the command line as a process."""

import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line and end the process, never by the signal of a Ctrl-C."""
    code: object = 130
    try:
        try:
            from dynalyze.cli import main

            code = main()
        finally:
            # While it shuts down, Python would let a late one end the process.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print("dynalyze: interrupted", file=sys.stderr)
    except SystemExit as ended:
        code = ended.code
    sys.exit(code)  # type: ignore[arg-type]  # an integer, from this library and from argparse


if __name__ == "__main__":
    run()
