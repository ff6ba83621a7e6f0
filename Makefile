# Two commands on a fresh clone: `make demo` and `make test`. Python 3.11 or newer is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
METADATA := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test check validate bench docs clean

demo: $(VENV)/.demo  ## predict the stages of two models on real data, in out/
	@mkdir -p out
	$(BIN)/dynalyze predict --data diabetes --plot out/diabetes.png --out out/diabetes.npz
	$(BIN)/dynalyze predict --data digits --plot out/digits.png --out out/digits.npz
	@echo "figures: out/diabetes.png out/digits.png"

# Two test processes with two threads each would wait for one another's cores: on small matrices
# that was seen to cost a factor of 60.
test validate: export OMP_NUM_THREADS := 1

test: $(VENV)/.test  ## the test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 10

check: $(VENV)/.check  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

validate: $(VENV)/.test  ## slow validations; writes docs/validation
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m validation

bench: $(VENV)/.test  ## benchmarks against the alternatives; writes docs/benchmarks
	$(BIN)/python -m validation.benchmarks

docs: $(VENV)/.test  ## render theory/ into docs/theory
	$(BIN)/python -m theory.render

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(METADATA)
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python $(METADATA)
	$(PIP) --editable ".[test,test-integrations]"
	@touch $@ $(VENV)/.demo

$(VENV)/.check: $(VENV)/.test
	$(PIP) --editable ".[check]"
	@touch $@
