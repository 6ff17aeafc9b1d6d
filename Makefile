# Every target works from a fresh clone on a machine with Python 3.11, Go and Node; what else it needs it installs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test test-fast lint cluster cluster-down install demo demo-overload bench \
	conformance conformance-table

VENV := .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(VENV)/bin/pytest
STAGE := $(PYTHON) -m e2e.stages
BENCH ?= all
# Of the conformance suite; docs/conformance.md says what each takes.
IMAGE ?=
IMAGES ?=
SERVER ?=
SERVERS ?=
SECRETS ?=
SANITIZE ?=
KEEP ?=
export PYTHONPATH := operator

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	@command -v python3 >/dev/null || { echo "python3 is missing: install Python 3.11 or newer"; exit 1; }
	@echo "== virtual environment"
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/bin/pip install --quiet --group dev --editable .
	@touch $@

lint: $(VENV)/.installed ## Format, lint, types, import contract, generated reference, word list
	$(VENV)/bin/ruff format --check operator tests e2e docs
	$(VENV)/bin/ruff check operator tests e2e docs
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) docs/generate_reference.py --check
	$(PYTHON) docs/check_words.py

test-fast: $(VENV)/.installed ## Tests without a cluster, under a minute (the first time helm is built, too)
	$(PYTHON) -c "from e2e.cluster import binaries; binaries.ensure(['helm'])"
	$(PYTEST) tests/fast -n auto

cluster: $(VENV)/.installed ## Bring up the local cluster, or reuse a healthy one
	$(PYTHON) -m e2e.cluster up

cluster-down: $(VENV)/.installed ## Take the local cluster down without a trace
	$(PYTHON) -m e2e.cluster down

install: cluster ## Build and load the images, install the chart
	$(PYTHON) -m e2e.install

demo: install ## The whole way from nothing to an app that uses a pooled DATABASE_URL
	$(PYTHON) -m e2e.demo

demo-overload: install ## 40 copies of an app against max_connections = 100, without Poolkeeper and with it
	$(PYTHON) -m e2e.demo.overload

test: $(VENV)/.installed ## Everything: lint, types, fast tests, real API server, real PgBouncer, e2e on the cluster
	$(STAGE) lint $(MAKE) lint
	$(STAGE) install $(MAKE) install
	$(STAGE) fast $(PYTEST) tests/fast -n auto
	$(STAGE) apiserver $(PYTEST) tests/apiserver -n 2 --dist loadfile --durations=10
	$(STAGE) pgbouncer $(PYTEST) tests/pgbouncer -n 2 --dist loadfile --durations=10
	$(STAGE) datapath $(PYTEST) tests/datapath -m "smoke and not conformance" -n 2 --dist worksteal --durations=10
	$(STAGE) e2e $(PYTEST) tests/e2e --durations=15

conformance: $(VENV)/.installed ## The data path against PostgreSQL itself: the shipped image, or IMAGE= SERVER= SECRETS= SANITIZE=1
	$(PYTEST) tests/datapath -n 2 --dist worksteal --durations=10 \
	  $(if $(IMAGE),--pooler $(IMAGE)) $(if $(SANITIZE),--sanitize) \
	  $(if $(SERVER),--server-version $(SERVER)) $(if $(SECRETS),--server-secrets $(SECRETS))

conformance-table: $(VENV)/.installed ## Write docs/conformance.md from runs of all IMAGES= with all SERVERS=; KEEP=1 adds to it
	$(PYTHON) -m tests.datapath.report $(addprefix --pooler ,$(IMAGES)) $(addprefix --server-version ,$(SERVERS)) \
	  $(if $(SECRETS),--server-secrets $(SECRETS)) $(if $(KEEP),--keep)

bench: $(VENV)/.installed ## Benchmarks, all or BENCH=reconcile, reload, keeper, budget, datapath, suite
	$(PYTHON) -m e2e.bench $(BENCH)
