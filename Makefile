# imagegen: set up, start, check. `make` alone lists the targets; everything is installed into .venv.
#
# Variables, given as `make serve PORT=8080`:
#   HOST, PORT   where to listen: 127.0.0.1, 5050
#   PYTHON       what .venv is made with: the newest of python3.13, python3.12, python3.11, python3 that can
#   TORCH        cpu or cuda: by default cuda where nvidia-smi finds a GPU, else cpu. Named by hand it is a demand:
#                without it, the build that can be had is taken.
#   TORCH_INDEX  an index to ask for the CPU build, and for nothing else, where pip's own indexes do not have it:
#                pytorch publishes one; without it such a machine takes the CUDA build, which runs on a CPU as well
#   ARGS         more arguments for pytest: make test ARGS="tests/unit -x"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

HOST := $(or $(IMAGEGEN_HOST),127.0.0.1)
PORT := $(or $(IMAGEGEN_PORT),5050)
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --constraint constraints.txt --build-constraint constraints.txt

# --- .venv: each stamp is made once, and again when what it depends on has changed -----------------------------------

FITS := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for it in python3.13 python3.12 python3.11 python3; do \
	if $$it -c '$(FITS)' >/dev/null 2>&1; then echo $$it; break; fi; done)
NO_PYTHON := imagegen needs Python 3.11 or newer with its venv module: apt install python3-venv, or name one with PYTHON=

ifndef TORCH
TORCH := $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo cuda || echo cpu)
TORCH_ELSE := echo "No $(TORCH) build of torch can be had here: taking the one there is, which can be several GB."
else
TORCH_ELSE := { echo "No $(TORCH) build of torch can be had here; see TORCH_INDEX in the Makefile." >&2; exit 1; }
endif

torch := $(shell grep '^torch==' constraints.txt)
torch_cpu := "$(torch)+cpu"
torch_cuda := "$(torch),!=$(patsubst torch==%,%,$(torch))+cpu"
torch_index_cpu := $(TORCH_INDEX)

# The build of torch that .venv has in fact: the one that was asked for is not always to be had.
BUILT = $(shell $(BIN)/python -c 'from importlib.metadata import version; print("cpu" if version("torch").endswith("+cpu") else "cuda")')
torchvision := $(shell grep '^torchvision==' constraints.txt)
torchvision_cpu := "$(torchvision)+cpu"
torchvision_cuda := "$(torchvision),!=$(patsubst torchvision==%,%,$(torchvision))+cpu"

$(VENV)/.pip:
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo '$(NO_PYTHON)' >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	@touch $@

# Only torch itself, without its dependencies: no other package can come from its index.
$(VENV)/.torch-$(TORCH): constraints.txt | $(VENV)/.pip
	@rm -f $(VENV)/.torch-*
	@echo 'Installing $(torch), build: $(TORCH)'
	@$(PIP) install --no-deps $(torch_$(TORCH)) 2>/dev/null $(if $(torch_index_$(TORCH)),\
	|| $(PIP) install --no-deps --retries 1 --timeout 15 --index-url $(torch_index_$(TORCH)) $(torch_$(TORCH)) 2>/dev/null)\
	|| $(TORCH_ELSE)
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt $(VENV)/.torch-$(TORCH)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) --quiet --group dev
	@touch $@

# --- what a person calls ---------------------------------------------------------------------------------------------

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo "Variables (HOST, PORT, PYTHON, TORCH, ...): the head of the Makefile."

.PHONY: install
install: $(VENV)/.runtime ## Set up .venv with all that the service needs

.PHONY: torch
torch: $(VENV)/.torch-$(TORCH)

.PHONY: vision
vision: $(VENV)/.runtime ## Add torchvision: FLUX.2 dev and Qwen-Image-Edit read pictures with it
	@$(MAKE) --no-print-directory torchvision

# Of the same build as torch, or none: beside another build of torch its import fails, and with it every model's load.
.PHONY: torchvision
torchvision:
	@$(PIP) install --quiet --no-deps $(torchvision_$(BUILT)) 2>/dev/null $(if $(TORCH_INDEX),\
	|| { [ $(BUILT) = cpu ] && $(PIP) install --quiet --no-deps --retries 1 --timeout 15 \
	--index-url $(TORCH_INDEX) $(torchvision_cpu) 2>/dev/null; })\
	|| { echo "No $(BUILT) build of $(torchvision) can be had here; see TORCH_INDEX in the Makefile." >&2; exit 1; }
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { $(PIP) uninstall --quiet --yes torchvision; \
	echo "$(torchvision) does not work beside this torch and was removed again." >&2; exit 1; }

.PHONY: serve
serve: $(VENV)/.runtime ## Start the service on 127.0.0.1:5050
	@echo "imagegen: open http://$(HOST):$(PORT)/docs in a browser; Ctrl+C stops it"
	@exec $(BIN)/imagegen serve --host "$(HOST)" --port "$(PORT)"

.PHONY: test
test: $(VENV)/.dev ## Run the whole suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# Apart from `test`: tracing every worker process takes a third more time.
.PHONY: coverage
coverage: $(VENV)/.dev ## Run the whole suite and show what it does not reach
	$(BIN)/python -m pytest $(ARGS) --cov

.PHONY: fast
fast: $(VENV)/.dev ## Run ruff, mypy and the unit tests: for every edit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit $(ARGS)

.PHONY: check
check: lint ## Run all gates, then the suite: what CI runs
	@$(MAKE) --no-print-directory test

.PHONY: lint
lint: $(VENV)/.dev ## Run the static gates alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/figures.py
	$(BIN)/hadolint Dockerfile

.PHONY: bench
bench: $(VENV)/.dev ## Run the measurements in bench/
	@for it in bench/[!_]*.py; do $(BIN)/python -m "bench.$$(basename "$$it" .py)" || exit; done

.PHONY: torture
torture: $(VENV)/.dev ## Kill the service under load 200 times, then 200 faults of every kind; nothing may be lost
	$(BIN)/python -m tests.torture $(ARGS)
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: clean
clean: ## Remove .venv, caches and build outputs; tasks and pictures stay
	rm -rf $(VENV) build dist htmlcov coverage.xml .coverage .coverage.* \
		.mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
