# Two commands: `make run` forwards for real, `make test` sets up and passes every test.
# The environment is .venv, made here; PYTHON names the interpreter that makes it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
NATIVE := $(wildcard _fastpath/*.pyx _fastpath/*.pxd)

.PHONY: run test check sanitize build clean

run: $(VENV)/built
	@$(BIN)/oinetd demo

test: $(VENV)/test-ready
	@sh tests/prerequisites.sh
	@$(BIN)/python -m pytest -n 2

check: $(VENV)/check-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" cython-lint --max-line-length 120 _fastpath
	$(BIN)/stubtest oinetd._fastpath oinetd._bench

# The engine tests under the address, undefined-behaviour and thread sanitizers, on a build of its own.
sanitize: $(VENV)/test-ready
	@$(PIP) install 'cython>=3.1' 'setuptools>=77'
	sh tests/sanitize.sh address -n 2
	sh tests/sanitize.sh thread

build: $(VENV)/built

clean:
	rm -rf $(VENV) build *.egg-info oinetd/_*.so _fastpath/*.c

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'oinetd needs Python 3.11 or newer. Debian: apt install python3, or make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo 'Python has no venv module. Debian: apt install python3-venv'; exit 1; }
	@echo 'making the environment $(VENV)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/built: $(BIN)/python pyproject.toml $(NATIVE)
	@command -v cc >/dev/null || command -v gcc >/dev/null \
	  || echo 'No C compiler: the native engine is left out, the Python engine serves. Debian: apt install gcc'
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
	  || echo 'No Python.h: the native engine is left out, the Python engine serves. Debian: apt install python3-dev'
	@echo 'building oinetd'
	@$(PIP) install --editable .
	@touch $@

$(VENV)/test-ready: $(VENV)/built
	@echo 'installing what the tests need'
	@$(PIP) install --editable '.[test]'
	@touch $@

$(VENV)/check-ready: $(VENV)/test-ready
	@$(PIP) install --editable '.[test,check,bench]'
	@touch $@
