# Everything a person or CI runs here. Each target first makes .venv and installs what it needs;
# the only things that must be there are make and Python 3.11 or newer.

PYTHON ?= python3
# Passed to pip, e.g. an index that has a CPU-only build of torch.
PIP_FLAGS ?=
# Passed to pytest. One worker per core, each with one thread; four at most, each holds a torch.
TEST_FLAGS ?= -n logical --maxprocesses 4
DEMO_FLAGS ?= --out runs/demo
CAMOUFLAGE_FLAGS ?= --out runs/demo-camouflage
BENCH_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo demo-camouflage test check lint format-check imports types fix bench build try-wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile 

demo: $(INSTALLED)  ## train a small detector on procedural scenes: minutes, on a CPU, into runs/demo
	$(BIN)/surefoot demo refdet $(DEMO_FLAGS)

demo-camouflage: $(INSTALLED)  ## train a small segmenter on procedural camouflage: minutes, on a CPU
	$(BIN)/surefoot demo camouflage $(CAMOUFLAGE_FLAGS)

test: $(INSTALLED)  ## the whole suite, doctests included
	$(BIN)/python -m pytest $(TEST_FLAGS)

check: lint format-check imports types  ## all four below; "make -k check" goes on after a failure

lint: $(INSTALLED)  ## ruff's rules
	$(BIN)/ruff check

format-check: $(INSTALLED)  ## ruff's formatting
	$(BIN)/ruff format --check

imports: $(INSTALLED)  ## the layers
	$(BIN)/lint-imports

# Without the variable pyright asks the network whether it is the newest of its kind.
types: $(INSTALLED)  ## pyright, strict
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

fix: $(INSTALLED)  ## mend what ruff can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)  ## the price of a guarded step
	$(BIN)/python -m benchmarks.guard_step $(BENCH_FLAGS)

build: $(INSTALLED)  ## the wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist

try-wheel: build  ## install the wheel in an empty environment and start it there
	PYTHON=$(BIN)/python scripts/try_wheel.sh dist/surefoot-*.whl

clean:  ## remove what was built and cached; .venv and runs/ stay
	rm -rf dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "surefoot needs Python 3.11 or newer; there is no '$(PYTHON)' here. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "surefoot needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make a virtual environment: its venv module is not installed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): torch and the development tools, a minute or a few, some gigabytes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[dev]'
	@touch $@
