# `make demo` and `make test` set up everything on a new machine with Python 3.10 or later and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= build/bench
RUNS ?= runs/demo
CASES ?= 10000
DIST ?= build/wheels

.PHONY: help demo test test-long fuzz docs bench tables lint audit wheel gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | test-long | fuzz | docs | bench | tables | lint | audit | wheel | gpu-check OUT=DIR [WHEELS=DIR] [DRY=1] | clean"

# The environment: pinned versions, and an editable installation of ltfast, which compiles its kernels.
$(VENV)/.installed: pyproject.toml constraints.txt csrc/CMakeLists.txt $(wildcard csrc/*.h csrc/*.cpp csrc/*/*)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "ltfast needs Python 3.10 or later"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing ltfast and its dependencies into $(VENV). The first time, this downloads PyTorch and compiles the C++ kernels, which takes some minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test,docs]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/ltfast train --config ce/digits --loss cross_entropy --out $(RUNS)/cross_entropy
	$(BIN)/ltfast train --config ce/digits --loss agcl --out $(RUNS)/agcl
	$(BIN)/ltfast train --config proco/digits --out $(RUNS)/proco
	$(BIN)/ltfast report $(RUNS)/cross_entropy $(RUNS)/agcl $(RUNS)/proco --picture $(RUNS)/comparison.png

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal -p no:benchmark

# Runs the tests that a change is most likely to break, including tests of every op, loss, method and command.
# `make test-long` runs the others.
test: $(VENV)/.installed lint
	$(PYTEST) -m "not slow"

test-long: $(VENV)/.installed
	$(PYTEST) -m slow

# Tests every op with new random arguments each time; `make test` uses 500 fixed cases. A failure prints the case and the
# command to run it again.
fuzz: $(VENV)/.installed
	FUZZ_CASES=$(CASES) $(PYTEST) tests/fuzz

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Builds the site in build/site. Broken links and anchors are errors. `make test` builds it too.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Checks the installed packages for known vulnerabilities. It queries pypi.org, and fails if that does not answer.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/frozen.txt

# Builds an sdist, and from it a manylinux wheel for this Python and processor. It shares the libgomp that PyTorch has
# loaded: a copy in the wheel would have a second pool of threads.
wheel: $(VENV)/.installed
	rm -rf $(DIST)
	$(BIN)/python -m build --outdir $(DIST)/unrepaired
	PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir $(DIST) $(DIST)/unrepaired/*.whl
	mv $(DIST)/unrepaired/*.tar.gz $(DIST)
	rm -r $(DIST)/unrepaired

bench: $(VENV)/.installed
	$(BIN)/ltfast bench --out $(OUT)
	$(BIN)/ltfast bench step --out $(OUT)

tables: $(VENV)/.installed
	$(BIN)/python bench/tables.py
	$(BIN)/python bench/scaling_model.py

# For a machine with a GPU, its own PyTorch and nvcc, and no network: uses $(PYTHON) without installing anything. WHEELS is a
# folder of wheels to use for this run alone. DRY=1 tries every part without a GPU.
ifdef DRY
gpu-check: $(VENV)/.installed
	$(BIN)/python bench/gpu_check.py $(OUT) --dry
else
gpu-check:
	$(PYTHON) bench/gpu_check.py $(OUT) $(if $(WHEELS),--wheels $(WHEELS))
endif

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
