# Two commands suffice on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check mutants gpu-dry-run format docs clean

demo: $(READY)
	$(BIN)/didi demo

# All tests but those that need a registry, a GPU or 12 GiB; `check` runs the fast ones.
test: $(READY)
	$(BIN)/pytest -n 2 -m "not network and not gpu and not large"

# What .ci/run and the pre-commit hook run. mkdocs --quiet would hide warnings from --strict.
check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
	$(BIN)/pytest -n 2

# Several hours on one core; `make mutants MUTANTS="didi/sampling/guided --sample 40"` runs a part. The named mutations
# (a sign of the student's loss flipped, a setting ignored) come first. Not part of `check`.
MUTANTS ?=
mutants: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --named
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py $(MUTANTS)

# The pages of docs/ as a site, in site/index.html.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "didi needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

# All stages of the GPU job at toy size on the CPU; the job itself is docs/gpu.md.
gpu-dry-run: $(READY)
	$(BIN)/python benchmarks/gpu/prepare.py --toy --carried build/gpu-toy
	$(BIN)/python benchmarks/gpu/run.py --toy --carried build/gpu-toy --work build/gpu-toy/work --out build/gpu-toy/out \
		--stages tests=60 tune=60 teacher=60 autoregressive=60 student=60 speed=60 --return prose-bundle prose-student-bundle
	$(BIN)/python benchmarks/gpu/collect.py build/gpu-toy/out --into build/gpu-toy/back
