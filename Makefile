# Every target is one readable command; `make` alone lists them.
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast check bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: setup.py
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e '.[dev,demo]'
	touch $@

quickstart: $(VENV)/installed ## Train both stages on drawn scenes, sample, score: eight to ten minutes on two cores
	$(PY) scripts/quickstart.py

# one process per core, of which four are enough: each test runs on one thread
test: $(VENV)/installed ## Run the tests: no GPU, no network
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-fast: $(VENV)/installed ## Run the tests that train nothing
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow'

check: $(VENV)/installed ## Lint, types, import contracts, spelling
	$(PY) -m ruff format --check . && $(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell

bench: $(VENV)/installed ## Measure the training step of the quickstart configuration
	$(PY) scripts/benchmark.py configs/quickstart/ldm.yaml

clean: ## Remove caches (keeps .venv and logs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
