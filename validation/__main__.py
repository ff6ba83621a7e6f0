"""``python -m validation``: all validations, after one another."""

import validation
from validation.report import run_all

if __name__ == "__main__":
    run_all(validation, skip=("report",))
