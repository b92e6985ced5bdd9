# Two commands do everything on a machine with python3, g++ and make: `make image` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml lpd_ext/_binary.py

.PHONY: image test lint bench clean

image: $(VENV)/built
	$(BIN)/lpd-ext generate --classes all --per-class 4 --seed 0 --output fashion.png --gif fashion.gif

test: $(VENV)/dev
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.inl' 'csrc/*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(VENV)/dev
	mkdir -p out
	$(BIN)/python -m pytest benchmarks --benchmark-json=out/bench.json \
		--benchmark-columns=median,iqr,rounds,iterations --benchmark-sort=name

clean:
	rm -rf build out $(VENV) lpd_ext/*.so *.egg-info fashion.png fashion.gif

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
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,bench]"
	touch $@
