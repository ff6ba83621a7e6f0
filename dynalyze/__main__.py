"""``python -m dynalyze``: the command line."""

import sys

from dynalyze.cli import main

if __name__ == "__main__":
    sys.exit(main())
