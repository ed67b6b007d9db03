# Every target makes what it needs: .venv with the pinned dependencies, the compiled objects, and
# then itself. PYTHON names the interpreter (3.10 or newer), MAX_JOBS bounds the compiler processes.
PYTHON ?= python3
DATA ?=
BENCH_ARGS ?=
GPU_ARGS ?=
PYTEST_ARGS ?=
# Test processes: one for each core, but no more than the machine's memory is sure to bear. Their
# idle threads sleep: spinning, they would hold the cores that the other processes need.
PYTEST_PROCESSES ?= -n auto --maxprocesses 4 --dist loadgroup
test wheel-test: export OMP_WAIT_POLICY = passive
# A build that cannot compile stops here, where `pip install .` would go on without the objects.
CFAL_BUILD ?= cpu
export CFAL_BUILD

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BUILD_INPUTS := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml
CPP_FILES := $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)
BUILD_TOOLS := cmake ninja packaging pybind11 setuptools wheel

.PHONY: all install demo test wheel wheel-test lint format sanitize bench gpu clean help

all: install

help:
	@echo "make install | demo [DATA=dir] | test | lint | format | sanitize | bench | gpu | wheel-test | clean"

# torch and the build tools come first: the package is then built against that torch.
$(VENV)/.tools: constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is no Python 3.10 or newer; name one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip $(BUILD_TOOLS) torch numpy
	@touch $@

# The stamp bears the time at which the build began: a source changed meanwhile is built again.
# Editable, so that the checkout and the installed package are one; wheel-test tests the other way.
$(VENV)/.installed: $(VENV)/.tools $(BUILD_INPUTS)
	@touch $@.begun
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	@mv $@.begun $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python -m cfal_experiments.demo $(if $(DATA),--data '$(DATA)')

test: install
	$(BIN)/python -m pytest $(PYTEST_PROCESSES) $(PYTEST_ARGS)

wheel: $(VENV)/.tools
	rm -rf dist
	$(PIP) wheel -q --no-deps --wheel-dir dist .

# The wheel in a clean environment, and the tests in a directory that holds no source of the package.
WHEEL_VENV := build/wheel-venv
WHEEL_RUN := build/wheel-run
wheel-test: wheel
	rm -rf $(WHEEL_VENV) $(WHEEL_RUN)
	$(PYTHON) -m venv $(WHEEL_VENV)
	wheel=$$(echo dist/*.whl) && \
	  $(WHEEL_VENV)/bin/python -m pip install -q -c constraints.txt "$$wheel[experiments,test]"
	mkdir -p $(WHEEL_RUN)
	cp -r tests pyproject.toml $(WHEEL_RUN)
	cd $(WHEEL_RUN) && CFAL_SHARED="$${CFAL_SHARED:-$(abspath ../shared)}" \
	  $(abspath $(WHEEL_VENV))/bin/python -m pytest $(PYTEST_PROCESSES) $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

sanitize: $(VENV)/.tools
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCFAL_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize $(if $(MAX_JOBS),--parallel $(MAX_JOBS))
	build/sanitize/cfal_sanitize

bench: install
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

# On the machine's own Python, torch and CUDA: no environment is made and nothing is fetched.
gpu:
	@$(PYTHON) gpu/run.py $(GPU_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info cfal_kernels/_lib .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
