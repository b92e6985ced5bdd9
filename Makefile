# Two commands do everything on a machine with python3, g++ and make: `make image` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml lpd_ext/_binary.py
NVCC := $(shell command -v nvcc 2>/dev/null)
comma := ,
EXTRAS := dev,bench$(if $(NVCC),$(comma)sass)

# The CUDA build has a torch, a venv and a build folder of its own; it needs nvcc, but no GPU.
CUDA_TORCH ?= torch==2.11.0
CUDA_VENV ?= .venv-cuda
CUDA_BIN := $(CUDA_VENV)/bin
CUDA_BUILD := build/cuda

.PHONY: image test lint bench mutants cuda-build clean

image: $(VENV)/built
	$(BIN)/lpd-ext generate --classes all --per-class 4 --seed 0 --output fashion.png --gif fashion.gif

# A file of tests at a time on each core.
test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.inl' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(VENV)/dev
	mkdir -p out
	$(BIN)/python -m pytest benchmarks --benchmark-json=out/bench.json \
		--benchmark-columns=median,iqr,rounds,iterations --benchmark-sort=name

# Every barrier, bound and comparison of the CUDA kernels changed in turn: takes minutes.
mutants: $(VENV)/dev
	$(BIN)/python tests/mutants.py

ifeq ($(NVCC),)
cuda-build:
	@echo "cuda-build: skipped, no nvcc on PATH"
else
cuda-build: $(CUDA_VENV)/dev
	$(CUDA_BIN)/python tests/cuda_build_check.py
	PYTHONPATH=tests $(CUDA_BIN)/pytest -p fake_cuda -q -rfE
endif

clean:
	rm -rf build out $(VENV) $(CUDA_VENV) lpd_ext/*.so *.egg-info fashion.png fashion.gif

$(VENV)/tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH) "setuptools>=77" wheel ninja "pybind11>=2.12"
	touch $@

# Torch comes first and isolation is off, so that the extension is built against that very torch.
$(VENV)/built: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

$(VENV)/dev: $(VENV)/built
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

$(CUDA_VENV)/tools:
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_BIN)/pip install --quiet --upgrade pip
	$(CUDA_BIN)/pip install --quiet $(CUDA_TORCH) "setuptools>=77" wheel ninja "pybind11>=2.12"
	touch $@

# Through a wheel: the source tree keeps the binaries of its own build. Objects are kept.
$(CUDA_VENV)/built: $(CUDA_VENV)/tools $(SOURCES) $(shell find lpd_ext -name '*.py')
	rm -rf $(CUDA_BUILD)/lib* $(CUDA_BUILD)/dist
	LPD_CUDA=1 $(CUDA_BIN)/python setup.py --quiet build --build-base $(CUDA_BUILD) \
		bdist_wheel --dist-dir $(CUDA_BUILD)/dist
	$(CUDA_BIN)/pip uninstall --quiet --yes lpd_ext
	$(CUDA_BIN)/pip install --quiet $(CUDA_BUILD)/dist/lpd_ext-*.whl
	touch $@

# What the tests import; the console script of pytest leaves the source tree off the path.
$(CUDA_VENV)/dev: $(CUDA_VENV)/built
	$(CUDA_BIN)/pip install --quiet "pytest>=8" "hypothesis>=6.100"
	touch $@
