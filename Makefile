# Two commands matter: `make demo` and `make test`. Both set everything up first; `make setup` does only that.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check
CONSTRAINTS := deploy/constraints.txt
NATIVE := $(wildcard kernels/src/*) kernels/CMakeLists.txt

.PHONY: help setup demo test test-quick lint format bench clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+: *##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

setup: $(VENV)/.built  ## create .venv, install the dependencies, build the kernels; quick when nothing changed

demo: setup      ## four real peers on this machine train one adapter together, then a fifth verifies it
	$(VENV)/bin/sterna demo $(DEMO)

test: setup      ## all tests
	$(VENV)/bin/pytest -q

test-quick: setup  ## the tests without real processes
	$(VENV)/bin/pytest -q -m "not real"

lint: setup      ## format, lint, types, import contracts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup    ## rewrite the sources in the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup     ## speed tables, stated as ratios inside one run
	$(VENV)/bin/sterna bench kernels $(BENCH)

clean:           ## remove what was built and installed
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Sterna needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11'; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'python3 -m venv failed: sudo apt-get install -y python3-venv'; exit 2; }

# One of libp2p's dependencies is compiled on the spot: it needs the headers of GMP, and a setuptools that makes
# wheels by itself, which the one that comes with Python 3.11 does not. byzfl, an oracle of the tests, asks for a
# torchvision that they do without and that does not go with every torch.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@printf '#include <gmp.h>\n' | $${CC:-cc} -E -x c - >/dev/null 2>&1 \
	  || { echo 'A compiler and GMP are missing: sudo apt-get install -y build-essential python3-dev python3-venv libgmp-dev'; exit 2; }
	$(PIP) install -q -c $(CONSTRAINTS) scikit-build-core nanobind cmake ninja 'setuptools>=77'
	$(PIP) install -q -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	$(PIP) install -q -c $(CONSTRAINTS) --no-deps byzfl
	@touch $@ $(VENV)/.just-built

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	@rm $(VENV)/.just-built 2>/dev/null || $(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@
