# Every target sets up what it needs: a fresh clone, Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-gpu check lock clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"vggrepro needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}; name another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## the whole story in small: A, D from A, dense evaluation, the table (minutes, CPU)
	$(BIN)/vggrepro reproduce --config configs/demo.yaml

test: $(STAMP)  ## all tests but the slow ones and those that need a GPU
	$(BIN)/python -m pytest

test-gpu: $(STAMP)  ## what needs a CUDA device: tests, then benchmarks into benchmarks/results; PICTURES=photographs
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py $(PICTURES)

check: $(STAMP)  ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

lock: $(STAMP)  ## pin the newest versions that pyproject.toml allows, with hashes
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --extra dev --extra onnx pyproject.toml -o requirements.lock

clean:  ## remove what runs and tools leave behind, but not the environment
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
