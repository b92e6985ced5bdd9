# Two commands do everything on a machine with python3, g++ and make: `make image` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: image test lint bench clean

image: $(VENV)/built
	$(BIN)/lpd-ext generate --classes all --seed 0 --output fashion.png --gif fashion.gif

test: $(VENV)/built
	$(BIN)/python -m pytest

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(VENV)/built
	mkdir -p out
	$(BIN)/python -m pytest benchmarks --benchmark-group-by=func,param:step,param:filters,param:case --benchmark-json=out/bench.json

clean:
	rm -rf build $(VENV) lpd_ext/*.so *.egg-info

$(VENV)/tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH) "setuptools>=77" wheel ninja "pybind11>=2.12"
	touch $@

# Torch comes first and isolation is off, so that the extension is built against that very torch.
$(VENV)/built: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,bench]"
	touch $@
