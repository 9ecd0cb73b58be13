# Everything happens in .venv; all that is needed beforehand is Python 3.10 or newer.
PYTHON ?= python3
# On Linux the registry's default torch brings gigabytes of GPU libraries, so only a CPU build is
# taken; without one the tests that need torch are skipped. TORCH=torch==2.13.0 takes any.
TORCH ?= $(if $(filter Linux,$(shell uname -s)),torch==2.13.0+cpu,torch==2.13.0)
JOBS ?= auto
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all bench lint clean torch2trt

demo: .venv/core  ## build the shipped model and let it read digits
	@$(BIN)/tactician demo

test: .venv/test  ## the tests
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-all: .venv/test  ## the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

torch2trt: .venv/test  ## torch2trt's own tests; TORCH2TRT=folder of its checkout
	@test -d '$(TORCH2TRT)/torch2trt' \
	  || { echo "set TORCH2TRT to a checkout of github.com/NVIDIA-AI-IOT/torch2trt"; exit 1; }
	cd '$(TORCH2TRT)' && PYTHONPATH='$(CURDIR):$(CURDIR)/tests/compat' \
	  '$(CURDIR)/$(BIN)/python' -m pytest -p torch2trt_conftest -p no:cacheprovider tests $(ARGS)

bench: .venv/bench  ## compare with onnxruntime; MODELS="a.onnx b.onnx" chooses
	$(BIN)/python benchmarks/bench.py $(ARGS) $(MODELS)

lint: .venv/lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "$(PYTHON) is too old: need 3.10 or newer; set PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/core: pyproject.toml | .venv/bin/python
	$(PIP) install -q --no-compile -e .
	@touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(PIP) install -q --no-compile -e '.[test]'
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install -q '$(TORCH)' 2>/dev/null \
	  || echo "no $(TORCH) for this Python: tests that need it are skipped"
	@touch $@ .venv/core

.venv/bench: pyproject.toml | .venv/bin/python
	$(PIP) install -q --no-compile -e '.[bench]'
	@touch $@ .venv/core

.venv/lint: pyproject.toml | .venv/bin/python
	$(PIP) install -q --no-compile -e '.[dev]'
	@touch $@ .venv/core
