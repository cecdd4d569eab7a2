# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.10 or later and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= build/bench
RUNS ?= runs/demo
CASES ?= 10000

.PHONY: help demo test test-long fuzz docs bench tables lint audit gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | test-long | fuzz | docs | bench | tables | lint | audit | gpu-check OUT=DIR | clean"

# The environment: pinned versions, and ltfast itself in editable form (its kernels are compiled here).
$(VENV)/.installed: pyproject.toml constraints.txt csrc/CMakeLists.txt $(wildcard csrc/*.h csrc/*.cpp csrc/*/*)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "ltfast needs Python 3.10 or later"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing ltfast and what it needs into $(VENV). The first time, this downloads PyTorch and compiles the C++ kernels: some minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test,docs]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/ltfast train --config ce/digits --loss cross_entropy --out $(RUNS)/cross_entropy
	$(BIN)/ltfast train --config ce/digits --loss agcl --out $(RUNS)/agcl
	$(BIN)/ltfast train --config proco/digits --out $(RUNS)/proco
	$(BIN)/ltfast report $(RUNS)/cross_entropy $(RUNS)/agcl $(RUNS)/proco --picture $(RUNS)/comparison.png

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal -p no:benchmark

# What a change is most likely to break, and every op, loss, method and command. `make test-long` runs the rest.
test: $(VENV)/.installed lint
	$(PYTEST) -m "not slow"

test-long: $(VENV)/.installed
	$(PYTEST) -m slow

# Random arguments for every op, new ones each time; `make test` has 500, always the same. A failure prints the case and
# how to run it again.
fuzz: $(VENV)/.installed
	FUZZ_CASES=$(CASES) $(PYTEST) tests/fuzz

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into build/site; a link or an anchor that leads nowhere is an error. `make test` does it too.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Known vulnerabilities of all that is installed; asks pypi.org, and fails where that does not answer.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/frozen.txt

bench: $(VENV)/.installed
	$(BIN)/ltfast bench --out $(OUT)
	$(BIN)/ltfast bench step --out $(OUT)

tables: $(VENV)/.installed
	$(BIN)/python bench/tables.py
	$(BIN)/python bench/scaling_model.py

# On a machine with a GPU, its own PyTorch and nvcc, and perhaps no network: uses $(PYTHON) as it is.
gpu-check:
	bash bench/gpu_check.sh $(PYTHON) $(OUT)

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
