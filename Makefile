# Every target sets up what it needs in .venv and says so. Interpreter: PYTHON=..., else the first usable one.
# The package index and its certificates are pip's own settings (pip.conf, PIP_* in the environment).
SHELL := /bin/sh
.DEFAULT_GOAL := help
PACKAGES := schemas labeling retrain streams
BIN := .venv/bin
ARGS :=

.PHONY: help setup demo test check bench fuzz chaos calibrate calibrate-flights servers lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo "  Arguments: make demo ARGS='--fault none --json', make test ARGS='-k join -x'"

setup: .venv/complete ## make .venv with the locked dependencies (the others do it by themselves)

.venv/complete: requirements.lock pyproject.toml Makefile
	@python=$$(./.ci/python "$(PYTHON)") && \
	if $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then :; else \
	    echo "setup: new environment .venv with $$python" >&2; \
	    rm -rf .venv && "$$python" -m venv .venv; \
	fi
	@sum=$$(cksum < requirements.lock); \
	if [ "$$sum" != "$$(cat .venv/installed 2>/dev/null)" ]; then \
	    echo "setup: installing the $$(grep -c '==' requirements.lock) locked dependencies (once; about a minute)" >&2 && \
	    $(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements.lock && \
	    echo "$$sum" > .venv/installed; \
	fi
	@echo "setup: installing flywheel itself" >&2
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## watch the whole loop turn once on real flights
	@$(BIN)/flywheel demo $(ARGS)

# Two at a time, a file each: half of their time they wait for servers and processes. ARGS=-n0 runs one after another.
test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES) tests
	$(BIN)/lint-imports

bench: setup ## measure against bare consume and Faust agents; writes bench.json
	$(BIN)/python -m tests.bench.run $(ARGS)

fuzz: setup ## a million mutated events against a plain computation (some ten minutes of CPU)
	FUZZ_EVENTS=1000000 $(BIN)/python -m pytest tests/plane/test_fuzz.py $(ARGS)

chaos: setup ## kill workers, brokers and databases under load, and compare with the oracle; writes chaos.json
	$(BIN)/python -m tests.chaos.run $(ARGS)

calibrate: setup ## false alarms against the stated budget, delays, coverage, beside the usual rules (some ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.calibrate.stationary $(ARGS)

calibrate-flights: setup ## nine months of real flights: every page, and faults planted at random moments
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.calibrate.flights $(ARGS)

servers: ## install Apache Kafka, a schema registry and PostgreSQL for the integration tests
	@./.ci/servers

lock: setup ## resolve the dependencies anew into requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --all-extras --no-annotate pyproject.toml -o requirements.lock

clean: ## remove what was built (not .servers, not .flywheel)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
