# `make help` lists the targets. Everything is built with one profile and in one
# folder outside the clone, so that the next clone starts warm.

CACHE  ?= $(HOME)/.cache/glueless
PYTHON ?= python3
CARGO  ?= cargo

export CARGO_TARGET_DIR ?= $(CACHE)/target

# The window that `make run` folds: the CDC files of the fixtures, by their names.
WINDOW     := --start-date 2019-12-12 --end-date 2019-12-16
LAKE_FILES := find lake -name _glueless -prune -o -type f

# Named for what decides their content, so that a change makes a new one.
fingerprint  = $(shell { $(1); } | cksum | cut -d ' ' -f 1)
VENV        := $(CACHE)/venv-$(call fingerprint,$(PYTHON) --version 2>&1; cat tests/requirements.txt)
BENCH_VENV  := $(CACHE)/venv-$(call fingerprint,$(PYTHON) --version 2>&1; cat benches/requirements.txt)
AIRFLOW_VENV := $(CACHE)/venv-$(call fingerprint,$(PYTHON) --version 2>&1; cat tests/airflow-requirements.txt)
FAR_STORE   := $(CACHE)/s3s-fs-0.14.1
DENY        := $(CACHE)/cargo-deny-0.20.2
BENCH_DATA  := $(CACHE)/bench/$(call fingerprint,cat benches/generate.rs)

GLUELESS    := $(CARGO_TARGET_DIR)/release/glueless
EXAMPLES    := $(CARGO_TARGET_DIR)/release/examples
SHOW        := $(EXAMPLES)/show
TEST_PYTHON := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help run build postgres wal2json test test-long test-airflow check lint audit fixtures bench bench-scale bench-far bench-tools clean sources

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Fold the fixtures into lake/ and show the tables
	$(GLUELESS) run sql/cust_loyalty $(WINDOW)
	$(GLUELESS) run sql/cust_loyalty_by_day $(WINDOW)
	$(GLUELESS) run sql/cust_loyalty_history $(WINDOW)
	@echo; echo "The files of the lake:"
	@$(LAKE_FILES) -print | LC_ALL=C sort
	@set -e; for table in $$($(LAKE_FILES) -name '*.parquet' -print | sed 's,/[^/]*=.*,,' | LC_ALL=C sort -u); do \
		echo; echo "$$table:"; $(SHOW) $$table; \
	done

# An example is built along with the binary so that cargo counts the development
# dependencies in, as it does for tests; without them some dependencies would
# have other features and be built twice.
build: sources
	$(CARGO) build --release --bin glueless --example show

# Cargo goes by the times of files: what another clone built would pass for ours.
sources:
	@mkdir -p $(CARGO_TARGET_DIR)
	@[ "$$(cat $(CARGO_TARGET_DIR)/built-from 2>/dev/null)" = "$(CURDIR)" ] || touch src/lib.rs
	@echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/built-from

test: sources $(VENV)/installed postgres ## Run all tests
	GLUELESS_TEST_PYTHON=$(TEST_PYTHON) $(CARGO) test --release

test-long: sources $(VENV)/installed postgres ## Run the property tests with 20 times the cases, 10,000 partitions, and for an hour captures, folds and a server that are killed
	GLUELESS_TEST_PYTHON=$(TEST_PYTHON) GLUELESS_TEST_TIMES=20 GLUELESS_TEST_SECONDS=3600 $(CARGO) test --release --test main -- model:: catalog::many_partitions capture::the_table_is capture::processes_that capture_anew::processes_that capture_audit::the_table_is capture_audit::extracts_that capture_kills::

test-airflow: build $(AIRFLOW_VENV)/installed ## Run the DAG of examples/airflow in a real Airflow
	$(AIRFLOW_VENV)/bin/python tests/airflow_dag.py --glueless $(GLUELESS)

# The servers of some tests: only the programs, no server of the system is started by us.
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { \
		command -v apt-get >/dev/null || { \
			echo "error: the tests need PostgreSQL's server programs (initdb, postgres, psql)" >&2; \
			echo "hint: install PostgreSQL 13 or newer, with initdb in the PATH" >&2; exit 1; }; \
		as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
		$$as_root apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq --no-install-recommends postgresql openssl; }

# What captures are measured beside.
wal2json: postgres
	@ls /usr/lib/postgresql/*/lib/wal2json.so >/dev/null 2>&1 || { \
		as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
		DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq --no-install-recommends \
			postgresql-$$(ls /usr/lib/postgresql | tail -n 1)-wal2json; }

check: lint test ## What CI runs: lint and test

lint: sources $(VENV)/installed ## Check the formatting and the spelling, and run clippy
	$(CARGO) fmt --check
	$(VENV)/bin/codespell src tests docs README.md CONTRIBUTING.md CHANGELOG.md sql benches/*.md
	$(CARGO) clippy --release --all-targets -- -D warnings

ADVISORIES := https://github.com/RustSec/advisory-db

# Not part of `check`: what it finds changes without any change of ours.
audit: $(DENY)/bin/cargo-deny ## Check the dependencies: licences, versions, sources, advisories
	$(DENY)/bin/cargo-deny check licenses bans sources
	@if GIT_TERMINAL_PROMPT=0 git ls-remote --quiet $(ADVISORIES) HEAD >/dev/null 2>&1; then \
		$(DENY)/bin/cargo-deny check advisories; \
	else \
		echo "warning: advisories were not checked: $(ADVISORIES) cannot be reached" >&2; \
	fi

$(DENY)/bin/cargo-deny:
	$(CARGO) install --quiet --locked --root $(DENY) cargo-deny@0.20.2

fixtures: sources ## Make fixtures/raw again, byte for byte
	$(CARGO) run --release --example make_fixtures -- fixtures/raw

BENCH := --glueless $(GLUELESS) --generate $(EXAMPLES)/generate_changes

bench: bench-tools postgres wal2json ## Time the fold next to its peers, runs onto large tables, nights, loads, captures, histories, and questions
	$(BENCH_VENV)/bin/python benches/measure.py $(BENCH) --copy $(EXAMPLES)/copy_parquet --work $(BENCH_DATA)
	$(BENCH_VENV)/bin/python benches/onto_a_table.py $(BENCH) --copy $(EXAMPLES)/copy_parquet --work $(BENCH_DATA)/tables
	$(BENCH_VENV)/bin/python benches/nights.py $(BENCH) --work $(BENCH_DATA)/nights
	$(BENCH_VENV)/bin/python benches/merges.py $(BENCH) --work $(BENCH_DATA)/nights
	$(BENCH_VENV)/bin/python benches/loads.py $(BENCH) --work $(BENCH_DATA)/nights
	$(BENCH_VENV)/bin/python benches/capture.py $(BENCH) --work $(BENCH_DATA)/capture
	$(BENCH_VENV)/bin/python benches/ages.py $(BENCH) --work $(BENCH_DATA)/ages
	$(BENCH_VENV)/bin/python benches/histories.py $(BENCH) --work $(BENCH_DATA)
	$(BENCH_VENV)/bin/python benches/questions.py $(BENCH) --work $(BENCH_DATA)

bench-scale: bench-tools ## Time the fold of 1, 2, 4 and 8 times as many changes, and draw it
	$(BENCH_VENV)/bin/python benches/scale.py $(BENCH) --work $(BENCH_DATA)

bench-far: bench-tools $(FAR_STORE)/bin/s3s-fs ## Time the fold on a store that answers slowly
	$(BENCH_VENV)/bin/python benches/far_store.py $(BENCH) --server $(FAR_STORE)/bin/s3s-fs --work $(BENCH_DATA)
	$(BENCH_VENV)/bin/python benches/many.py $(BENCH) --server $(FAR_STORE)/bin/s3s-fs --work $(BENCH_DATA)

bench-tools: build $(BENCH_VENV)/installed
	$(CARGO) build --release --example generate_changes --example copy_parquet

# A server over a local folder.
$(FAR_STORE)/bin/s3s-fs:
	$(CARGO) install --quiet --locked --root $(FAR_STORE) --features binary s3s-fs@0.14.1

clean: ## Remove lake/, the benchmark's data and our own build products
	rm -rf lake $(CACHE)/bench
	$(CARGO) clean --release --package glueless

# `make test` and `make lint`, `make bench`, and `make test-airflow` have one each.
$(VENV)/installed: REQUIREMENTS := tests/requirements.txt
$(AIRFLOW_VENV)/installed: REQUIREMENTS := tests/airflow-requirements.txt
$(BENCH_VENV)/installed: REQUIREMENTS := benches/requirements.txt
%/installed:
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "error: $(PYTHON) cannot make a virtual environment" >&2; \
		echo "hint: install Python 3 with its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; \
		exit 1; }
	rm -rf $*
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(REQUIREMENTS)
	touch $@
