# bcquant: `make demo` and `make test` work from a fresh clone; each makes the venv that it needs.
#
#   PYTHON       interpreter for the venv (3.11 or later)          default python3
#   PIP_FLAGS    more flags for every pip call (an index, a proxy)
#   PYTEST_ARGS  more flags for pytest, as in PYTEST_ARGS="-k packing"
#   DEMO_ARGS    more flags for `bcquant demo`

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq -c constraints.txt $(PIP_FLAGS)
SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.inc csrc/include/bcq/*.h)
MOBILE := $(wildcard mobile/*/*.cpp mobile/*/*.h mobile/*/*/*.cpp mobile/*/*/*.h)
BINDINGS := $(wildcard csrc/bindings/*.p*) csrc/tiers.txt
INPUTS := pyproject.toml setup.py constraints.txt $(SOURCES) $(MOBILE) $(BINDINGS)
# A package that asks for any torch must not pull the newest one, in pip's own build folders too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

TORCH_READY := $(VENV)/.stamp-torch
BASE_READY := $(VENV)/.stamp-base
TEST_READY := $(VENV)/.stamp-test

.PHONY: help demo model toolchains web-tools app-tools web test check format bench bench-peers clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install, then quantize a real model and show it before and after"
	@echo "make model   fetch the demo's model into the cache; tests on a real model need it"
	@echo "make toolchains   apt: cross compilers, qemu, clang for WASM; their tests skip without"
	@echo "make web-tools    apt, npm: Chromium and onnxruntime-web; the browser's tests skip without"
	@echo "make app-tools    npm: the Kotlin compiler (beside a JDK); its tests skip without"
	@echo "make web     the runtime as WebAssembly, its API and the chat page, into build/web"
	@echo "make test    install with the test extras, then run the whole suite"
	@echo "make check   ruff, mypy --strict and clang-format, as CI runs them"
	@echo "make format  let ruff and clang-format format the tree"
	@echo "make bench   quality table of the solver's steps"
	@echo "make bench-peers  a venv of its own for optimum-onnx, for benchmarks/bench_export.py"
	@echo "make clean   remove the venv and the caches"

# torch first and alone: what follows then finds it satisfied.
$(TORCH_READY): constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools wheel cython
	$(PIP) torch==2.13.0
	@touch $@

$(BASE_READY): $(TORCH_READY) $(INPUTS)
	$(PIP) --no-build-isolation -e .
	@touch $@

# gptqmodel's build imports the installed torch, so it goes in before the extras and unisolated.
# llama.cpp comes as source: built for this CPU, as bcquant is (three minutes).
$(TEST_READY): $(TORCH_READY) $(INPUTS)
	$(PIP) --no-build-isolation gptqmodel==7.6.0
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(PIP) llama-cpp-python==0.3.36
	$(PIP) --no-build-isolation -e '.[test]'
	@touch $@ $(BASE_READY)

demo: $(BASE_READY)
	$(BIN)/bcquant demo $(DEMO_ARGS)

model: $(BASE_READY)
	$(BIN)/python -c "from bcquant.io.demo_model import fetch_demo_model; print(fetch_demo_model())"

toolchains:
	sh csrc/tests/cross/install_toolchains.sh

web-tools:
	sh tests/web/install_web_tools.sh

app-tools:
	sh mobile/android/tests/install_kotlin.sh

web:
	sh mobile/web/build.sh build/web

test: $(TEST_READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(MOBILE)

format: $(TEST_READY)
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) $(MOBILE)

bench: $(BASE_READY)
	@test -f benchmarks/bench_quality.py || { echo "benchmarks/bench_quality.py is not there"; exit 1; }
	$(BIN)/python benchmarks/bench_quality.py

# optimum-onnx wants an older transformers than the judges.
bench-peers:
	$(PYTHON) -m venv .venv-optimum
	PIP_CONSTRAINT= .venv-optimum/bin/python -m pip install -qq $(PIP_FLAGS) torch==2.13.0
	PIP_CONSTRAINT= .venv-optimum/bin/python -m pip install -qq $(PIP_FLAGS) \
		optimum-onnx==0.1.0 onnx==1.23.2 onnxruntime==1.32.0

clean:
	rm -rf $(VENV) .venv-optimum tests/web/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
