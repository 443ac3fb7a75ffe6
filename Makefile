# Every target sets up what it needs: a fresh clone, Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# 13 or 12; without it, what is in the environment stays. No ?=: clusters export a CUDA of their own.
CUDA   := $(firstword $(patsubst $(VENV)/.cuda%,%,$(wildcard $(VENV)/.cuda*)) 13)
LOCK_13 := requirements.lock
LOCK_12 := requirements-cuda12.lock
LOCK   := $(LOCK_$(CUDA))
KIND   := $(VENV)/.cuda$(CUDA)
STAMP  := $(VENV)/.installed-cuda$(CUDA)
$(if $(LOCK),,$(error CUDA=$(CUDA): vggrepro is installed for CUDA 12 or 13: make CUDA=12 install))

COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --extra dev --extra onnx --extra hub --extra show --extra timm

# Containers like to set it, and then each process compiles torch anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

CHROMIUM ?= chromium
WORKERS ?= 3

.PHONY: install demo readme-image test test-gpu check lock clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

# An environment of one kind only: DALI's packages for CUDA 12 and 13 own the same folder.
$(KIND):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"vggrepro needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}; name another: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(if $(wildcard $(VENV)/.cuda* $(VENV)/.installed),--clear) $(VENV)
	@touch $@

$(STAMP): $(KIND) $(LOCK) pyproject.toml
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP)  ## the environment alone, in .venv; CUDA=12 for drivers older than 580: docs/install.md

demo: $(STAMP)  ## the whole story in small: A, D from A, dense evaluation, the table (minutes, CPU)
	$(BIN)/vggrepro reproduce --config configs/demo.yaml

runs/demo/tables.html:
	@$(MAKE) --no-print-directory demo

readme-image: runs/demo/tables.html  ## the README's image: the top of the demo's own report, by Chromium
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1400,900 \
	  --screenshot=docs/img/demo_tables.png file://$(CURDIR)/$<

test: $(STAMP)  ## all tests but the slow ones and those that need a GPU; WORKERS=3 at a time, then those of SLURM
	$(BIN)/python -m pytest --durations=10 -n $(WORKERS) --dist loadfile -m "not (slow or gpu or slurm)"
	$(BIN)/python -m pytest --durations=10 -m "slurm and not (slow or gpu)"

test-gpu: $(STAMP)  ## what needs a GPU: tests and benchmarks, into benchmarks/results; IMAGES=photographs MINUTES=25
	$(BIN)/python benchmarks/gpu.py $(addprefix --images=,$(or $(IMAGES),$(PICTURES))) $(addprefix --minutes=,$(MINUTES))

check: $(STAMP)  ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

lock: $(STAMP)  ## pin the newest versions that pyproject.toml allows, with hashes, for CUDA 13 and for 12
	$(COMPILE) --extra cuda13 pyproject.toml -o $(LOCK_13)
	$(COMPILE) --extra cuda12 pyproject.toml -o $(LOCK_12)

clean:  ## remove what runs and tools leave behind, but not the environment
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
