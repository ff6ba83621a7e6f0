"""``python -m validation.benchmarks``: all benchmarks, after one another."""

from validation import benchmarks
from validation.report import run_all

if __name__ == "__main__":
    run_all(benchmarks)
