# Every target works on a fresh checkout: the first one that needs it makes .venv (see scripts/setup).

PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/.stamp
UV := .cache/uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench images compose-test e2e fmt proto lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV) ## set up .venv from the lock, and what Debian or Ubuntu lacks

$(VENV): requirements-dev.lock pyproject.toml scripts/setup
	@PYTHON=$(PYTHON) scripts/setup

demo: $(VENV) ## play a volume's whole life on this machine, without Kubernetes (root, /dev/fuse)
	$(BIN)/python -m demo

test: $(VENV) ## run the whole suite against real nats-server, juicefs, FUSE, and kube-apiserver where it is installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/unit tests/house tests/api tests/deploy
	$(BIN)/pytest tests/contract tests/integration tests/sanity

check: $(VENV) ## formatting, lint, types, imports, and the tests that need nothing but Python
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/unit tests/house

bench: $(VENV) ## measure, beside the floors of the same run
	$(BIN)/python -m tests.bench

images: $(VENV) ## build the container images
	scripts/images

compose-test: $(VENV) ## the demo's story against docker compose
	scripts/compose-test

e2e: $(VENV) ## run tests/e2e on the cluster of KUBECONFIG, or on one that CLUSTER brings up
	scripts/e2e

fmt: $(VENV) ## format, and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(VENV) ## regenerate shared/api from shared/proto
	scripts/proto

lock: $(UV) ## pin every dependency again, with hashes; `make lock UPGRADE=--upgrade` takes newer ones
	$(UV) pip compile $(LOCK) --extra binaries --output-file requirements.lock
	$(UV) pip compile $(LOCK) --extra binaries --extra dev --constraint requirements.lock --output-file requirements-dev.lock

LOCK := pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

$(UV):
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/pip install --quiet --disable-pip-version-check uv

clean: ## remove what the targets made: .venv, caches, build leftovers
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
