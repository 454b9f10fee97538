# recsys_llm: every task a contributor or a newcomer needs.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes that each start a thread per core only slow each other down.
TEST_JOBS ?= 2
# Where pip-audit looks.
AUDIT := https://pypi.org/pypi
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint bench figures peers clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: $(INSTALLED)  ## Whole path on real data: tables in, ranked items out
	$(BIN)/recsys-llm quickstart

# In the order of folders: otherwise xdist begins with the files of most tests, and one worker is left with slow ones.
test: $(INSTALLED)  ## All tests (real Redis and Postgres from wheels)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## ruff, mypy --strict and pip-audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if $(BIN)/python -c "from urllib.request import urlopen; urlopen('$(AUDIT)/pip/20.0/json', timeout=3)" 2>/dev/null; \
	then $(BIN)/pip-audit --progress-spinner off --disable-pip --no-deps --requirement constraints.txt; \
	else echo "pip-audit skipped: the vulnerability service $(AUDIT) can't be reached"; fi

bench: $(INSTALLED)  ## One lookup against plain Feast, on a repository of its own; more: recsys-llm bench --help
	$(BIN)/recsys-llm bench online

figures: $(INSTALLED)  ## The README's tables, from the reports in recsys_llm/bench/figures
	$(BIN)/python -m recsys_llm.bench.figures README.md

peers: .venv-peers/.installed  ## RecTools (numpy < 2) in .venv-peers, for `evaluate next-items`

.venv-peers/.installed: constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet 'rectools[torch]==0.19.0' "$$(grep '^torch==' constraints.txt)" 'pyarrow>=17,<21'
	@touch $@

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
