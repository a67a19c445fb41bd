# `make demo` trains a world on this machine; `make test` runs the tests.
# Each sets itself up in .venv from the lock files in locks/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
LIBTPU := $(VENV)/libtpu/libtpu/libtpu.so
TORCH := $(VENV)/.torch
TORCH_INDEX ?=
RUNS ?= runs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Each training step on a CPU allocates hundreds of megabytes anew, and the kernel
# clears them in pages of 4 KB. With pages of 2 MB a step needs about a fifth less
# CPU time. Another C library than glibc ignores this.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help setup system-libraries demo play test test-slow test-faults \
  test-soak test-matrix lint format docs lock sbom clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with everything for development

# The tools that build a package come first: one that pip fetches by itself for
# a build has no hash.
$(STAMP): setup.cfg pyproject.toml locks/build.txt locks/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --requirement locks/build.txt
	$(PIP) --require-hashes --no-build-isolation --requirement locks/dev.txt
	PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

system-libraries:
	@if ! ldconfig -p | grep -q 'libGL\.so\.1' || \
	    ! ldconfig -p | grep -q 'libglib-2\.0\.so\.0'; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && \
	    apt-get install -y -qq libgl1 libglib2.0-0 >/dev/null; \
	  else \
	    echo "CoinRun needs two system libraries; type:" >&2; \
	    echo "  sudo apt-get install -y libgl1 libglib2.0-0" >&2; exit 2; \
	  fi; \
	fi

demo: setup system-libraries  ## collect CoinRun, train a world, measure it, roll it out
	@$(BIN)/python -m experiments.coinrun.pipeline --mode tiny --out $(RUNS)/demo

# PLAY_WORLD=runs/demo/world plays another world.
PLAY_WORLD ?=

play: setup  ## play the world that ships with this repository, in the browser
	@$(BIN)/python -m genie_jax.cli.play $(if $(PLAY_WORLD),--world $(PLAY_WORLD))

# The TPU compiler, for the tests that plan. Beside the environment and not in
# it: where JAX finds it, every start looks for TPUs first. Tests that need it
# are skipped and say so where it does not install.
$(LIBTPU): $(STAMP) locks/tpu.txt
	-sed -n '/^libtpu==/,/[^\]$$/p' locks/tpu.txt | \
	  $(PIP) --require-hashes --no-deps --upgrade --target $(VENV)/libtpu \
	  --requirement /dev/stdin

test: setup $(LIBTPU)  ## the default tier of tests (CPU)
	TPU_LIBRARY_PATH=$(abspath $(LIBTPU)) \
	  $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal tests

# PyTorch for the tests of its loader: no part of `dev`, as it is large. The
# Linux build of the usual index brings gigabytes of CUDA; TORCH_INDEX may name
# one of CPU builds. The tests are skipped and say so where it does not install.
# It has no lock, as each index has builds of its own; other packages keep the
# versions of the lock.
$(TORCH): $(STAMP)
	-$(BIN)/python -c 'import torch' 2>/dev/null || \
	  sed -n 's/^\([a-z].*\) \\$$/\1/p' locks/dev.txt | \
	  $(PIP) --constraint /dev/stdin --no-build-isolation \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --editable ".[torch]"
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then touch $@; fi

# An empty XLA_FLAGS turns on the optimizations that tests/conftest.py turns off.
test-slow: setup $(LIBTPU) $(TORCH)  ## the longer tests
	TPU_LIBRARY_PATH=$(abspath $(LIBTPU)) XLA_FLAGS="$$XLA_FLAGS" \
	  $(BIN)/python -m pytest -m slow -n 2 --dist worksteal tests

# The tests that docs/reliability.md names, of both tiers, then the campaigns,
# which go on where they were interrupted. FAULTS="--share 0.1" runs a tenth.
FAULTS ?=

test-faults: setup $(LIBTPU)  ## hours of injected faults, see docs/reliability.md
	TPU_LIBRARY_PATH=$(abspath $(LIBTPU)) $(BIN)/python -m pytest -n 2 \
	  --dist worksteal $$(grep -o 'tests/[a-z0-9_/]*\.py::[a-z0-9_]*' \
	  docs/reliability.md | sort -u)
	$(BIN)/python -m tests.faults $(FAULTS)

# SOAK="--minutes 5 --players 4" plays for another time, or with other players.
SOAK ?=

test-soak: setup  ## an hour of play at the limit of players; fails if memory grows
	$(BIN)/python benchmarks/soak.py $(SOAK)

# Environments of their own, in .venv-matrix. CELL=lowest-3.11 runs one of
# them, TESTS="tests/core tests/nn" a part of the tests, WORKERS=1 one at once.
CELL ?=
TESTS ?= tests
WORKERS ?= 2

test-matrix: setup  ## the tests on each Python, with the newest and oldest packages
	$(BIN)/python .ci/matrix.py --uv $(BIN)/uv --workers $(WORKERS) \
	  $(if $(CELL),--cell $(CELL)) $(TESTS)

lint: setup  ## style, format, types; .pre-commit-config.yaml runs the same
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup  ## mend what `make lint` finds and a program can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# The doctrees are the cache of Sphinx. -W: a broken link is an error.
docs: setup  ## the documentation site, in build/docs
	$(BIN)/sphinx-build -W --keep-going --quiet -c docs -d build/docs-cache \
	  . build/docs
	@echo "build/docs/index.html"

# Keeps the versions that still fit; UPGRADE=--upgrade takes the newest. The
# images get the versions of the tests, and a driver for the buckets of STORAGE.
STORAGE ?= gs
SBOM_TOOLS := cyclonedx-bom>=7,<8 pip-licenses>=5,<6
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 \
  --generate-hashes --no-annotate --quiet --custom-compile-command "make lock"

lock: setup  ## write locks/ again, after a change of setup.cfg
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load( \
	  open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	  $(COMPILE) $(UPGRADE) --output-file locks/build.txt -
	$(COMPILE) $(UPGRADE) --extra dev --output-file locks/dev.txt setup.cfg
	$(COMPILE) $(UPGRADE) --extra tpu --extra $(STORAGE) \
	  --constraint locks/dev.txt --output-file locks/tpu.txt setup.cfg
	$(COMPILE) $(UPGRADE) --extra cuda --extra $(STORAGE) \
	  --constraint locks/dev.txt --output-file locks/cuda.txt setup.cfg
	@printf '%s\n' $(foreach tool,$(SBOM_TOOLS),'$(tool)') | \
	  $(COMPILE) $(UPGRADE) --output-file locks/sbom.txt -

# The tools have an environment of their own, which the list does not contain.
SBOM := $(VENV)/sbom

$(SBOM)/.ready: $(STAMP) locks/sbom.txt
	$(BIN)/python -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes --only-binary :all: --requirement locks/sbom.txt
	@touch $@

sbom: $(SBOM)/.ready  ## the dependencies (CycloneDX) and their licences, in build/
	@mkdir -p build
	$(SBOM)/bin/cyclonedx-py environment --output-reproducible \
	  --output-file build/sbom.json $(BIN)/python
	$(SBOM)/bin/pip-licenses --python $(BIN)/python --format csv \
	  --with-urls --output-file build/licences.csv

clean:  ## remove the environments and caches, not the runs
	rm -rf $(VENV) .venv-matrix .cache build dist docs/api *.egg-info
