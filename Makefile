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

COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --extra dev --extra onnx --extra hub --extra show --extra timm --extra docs

# Containers like to set it, and then each process compiles torch anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

CHROMIUM ?= chromium
WORKERS ?= 3

.PHONY: install demo docs readme-image screenshots test test-gpu check lock clean help
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

docs: $(STAMP)  ## the documentation as a site, in site/: guides, API reference, search; a broken link is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -c docs . site
	@echo "site/index.html"

runs/demo/tables.html:
	@$(MAKE) --no-print-directory demo

readme-image: runs/demo/tables.html  ## the README's image: the top of the demo's own report, by Chromium
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1400,900 \
	  --screenshot=docs/img/demo_tables.png file://$(CURDIR)/$<

# pages that JavaScript draws; MLflow's run is known when the target runs
PICTURE  = $(BIN)/python docs/img/make.py --chromium $(CHROMIUM) --palette
UI       = $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlruns.db --host 127.0.0.1 --port 5077
RUN_ID   = $(shell $(BIN)/python -c 'import json; print(json.load(open("runs/demo/D/mlflow.json"))["run_id"])')
PLAIN    = --do "document.querySelectorAll('button[aria-label=Close]').forEach(b => b.click())" \
  --do "document.head.insertAdjacentHTML('beforeend', '<style>.modebar {display: none}</style>')" --settle 3

screenshots: runs/demo/tables.html  ## the pictures of `vggrepro show` and of MLflow's pages in docs/, by Chromium
	$(PICTURE) docs/img/show.png "http://127.0.0.1:8599/?image=2009&Q=56,96,128" --size 1280x1480 \
	  --server "$(BIN)/vggrepro show runs/demo/D --no-browser --port 8599" \
	  --until "document.querySelectorAll('svg.marks').length == 3 && !document.querySelector('[data-testid=stStatusWidget]')" \
	  --do "document.querySelector('[data-testid=stMain]').scrollTo(0, 90)"
	$(PICTURE) docs/img/mlflow_models.png --size 1900x420 --server "$(UI)" $(PLAIN) \
	  "http://127.0.0.1:5077/?workflowType=machine_learning#/experiments/1/models?workflowType=machine_learning" \
	  --until "document.body.innerText.includes('Source run')"
	$(PICTURE) docs/img/mlflow_system.png --size 1200x620 --server "$(UI)" $(PLAIN) \
	  "http://127.0.0.1:5077/?workflowType=machine_learning#/experiments/1/runs/$(RUN_ID)/system-metrics?workflowType=machine_learning" \
	  --until "document.body.innerText.includes('cpu_utilization_percentage')"

# SLURM's tests mostly wait, and need a process that no other test shares: the cluster is in its environment.
test: $(STAMP)  ## all tests but the slow ones and those that need a GPU; WORKERS=3 at a time, beside those of SLURM
	log=$$(mktemp); $(BIN)/python -m pytest --durations=10 -m "slurm and not (slow or gpu)" >$$log 2>&1 & slurm=$$!; \
	$(BIN)/python -m pytest --durations=10 -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  -m "not (slow or gpu or slurm)"; status=$$?; \
	wait $$slurm || status=$$?; cat $$log; rm $$log; exit $$status

test-gpu: $(STAMP)  ## what needs a GPU: tests and benchmarks, into benchmarks/results; IMAGES=photographs MINUTES=25
	$(BIN)/python benchmarks/gpu.py $(addprefix --images=,$(or $(IMAGES),$(PICTURES))) $(addprefix --minutes=,$(MINUTES))

check: $(STAMP) docs  ## ruff, mypy, codespell, and the documentation without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

lock: $(STAMP)  ## pin the newest versions that pyproject.toml allows, with hashes, for CUDA 13 and for 12
	$(COMPILE) --extra cuda13 pyproject.toml -o $(LOCK_13)
	$(COMPILE) --extra cuda12 pyproject.toml -o $(LOCK_12)

clean:  ## remove what runs and tools leave behind, but not the environment
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
