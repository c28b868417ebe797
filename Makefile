# make demo    train on the digits, draw samples and time a training step: runs/demo/
# make test    style, types and tests
# Both create .venv and install what they need; a second run reuses it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test

# An outer environment must not decide where pip installs or what python imports.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PYTHON ?= python3
find_cxx = $(shell find $(1) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
SOURCES := setup.py pyproject.toml $(call find_cxx,csrc)
CXX_FILES := $(call find_cxx,csrc bench)

demo: .venv/.demo
	.venv/bin/python -m fastcsm demo --out runs/demo

test: .venv/.test
	ruff check .
	ruff format --check .
	$(if $(CXX_FILES),clang-format --dry-run -Werror $(CXX_FILES))
	.venv/bin/python -m mypy
	.venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# torch 2.13.0 is the version the package is tested with; with a GPU, pip picks the newest torch for it.
.venv/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastcsm needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade "setuptools>=77" "wheel>=0.40" "ninja>=1.11" \
	  "$$(nvidia-smi >/dev/null 2>&1 && echo 'torch>=2.11' || echo 'torch==2.13.0')"
	touch $@

.venv/.demo: .venv/.torch $(SOURCES)
	.venv/bin/python -m pip install --quiet --no-build-isolation --editable ".[cli]"
	touch $@

.venv/.test: .venv/.torch $(SOURCES)
	.venv/bin/python -m pip install --quiet --no-build-isolation --editable ".[cli,test]"
	touch $@
