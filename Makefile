# SPDX-License-Identifier: MIT
# make demo   environment, install, reconstruct a scan with the bundled model, write mesh and picture to demo_output/
# make test   the whole test suite        make lint   ruff, mypy, clang-format
# make bench  ratios against the pure-PyTorch path and peers (results in benchmarks/results/)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The folder occkernels/ of this checkout must not shadow the installed package, which has the native module.
export PYTHONSAFEPATH = 1

SOURCES := $(shell find csrc cmake occkernels python -type f -not -name '*.pyc' -not -name '*.so' 2>/dev/null) \
           CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo test test-slow bench lint format clean

demo: $(VENV)/.installed
	@mkdir -p demo_output
	$(BIN)/occnets reconstruct examples/teapot.ply -o demo_output/teapot.glb --render demo_output/teapot.png --report demo_output/teapot.html
	@echo "Look at demo_output/teapot.png; open demo_output/teapot.glb in any 3-D viewer."

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest tests --run-slow

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cuda_host/*.h' 'tests/cuda_host/*.cpp' 'tests/cuda_host/*.cu')

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cuda_host/*.h' 'tests/cuda_host/*.cpp' 'tests/cuda_host/*.cu')

clean:
	rm -rf $(VENV) build dist demo_output

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt '.[train,test]'
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt ruff==0.17.5 mypy==2.4.1 clang-format==23.1.5 pybind11 types-PyYAML
	@touch $@
