# A fresh machine needs Python >= 3.11 and make, nothing else: each target sets up what it uses, once.
#   PYTHON=  the interpreter to make .venv with        PORT=  the port of `make serve`
#   T=       a test or benchmark, to run it alone      SEKISHO_… variables reach the server as they are

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve setup test test-long fuzz bench lint format provision

BIN := .venv/bin
# The stamps live inside .venv, so that deleting it deletes what they claim.
SERVER := .venv/server.stamp
DEV := .venv/dev.stamp
BENCH := .venv/bench.stamp
LONG := .venv/long.stamp
# No warnings, no version check, no questions: what pip still prints are errors.
PIP_INSTALL := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input install

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVER) ## Run the server (PORT=, SEKISHO_…)
	@exec $(BIN)/sekisho serve $(if $(PORT),--port $(PORT))

setup: $(DEV) provision ## Install everything that the other targets need; start nothing

# Three at a time on two cores: the tests spend a fifth of their time waiting for servers.
test: $(DEV) provision ## Run the tests (T=tests/test_x.py for a part)
	@$(BIN)/pytest -n 3 -m "not long" $(T)

test-long: $(LONG) provision ## Run the tests that take minutes (T= for a part)
	@$(BIN)/pytest -n 2 -m long $(T)

fuzz: $(LONG) ## Fuzz the readers of tokens and keys until Ctrl-C (T=-max_total_time=600 for ten minutes)
	@$(BIN)/python tests/fuzz/fuzz_token.py $(T)

bench: $(BENCH) provision ## Run the benchmarks (T=bench/x.py for one)
	@for script in $(or $(T),$(wildcard bench/[a-z]*.py)); do \
	    echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

# Every check runs even when one before it fails: one run tells everything that is wrong.
lint: $(DEV) ## Check style, types and the direction of imports
	@failed=0; \
	$(BIN)/ruff check --quiet . || failed=1; \
	$(BIN)/ruff format --quiet --diff . || failed=1; \
	$(BIN)/mypy --no-error-summary || failed=1; \
	$(BIN)/lint-imports --no-logo >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; failed=1; }; \
	exit $$failed

format: $(DEV) ## Format the code and repair what can be repaired
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

# Not a stamp: the browser is outside .venv and can go away; finding everything in place takes a moment.
provision: $(DEV)
	@cd tests && ../$(BIN)/python -m servers.provision

# Server first, so that a server alone never downloads what only development needs.
$(SERVER): requirements/server.txt pyproject.toml | $(BIN)/python
	@echo "Installing Sekisho into .venv"
	@$(PIP_INSTALL) --require-hashes -r requirements/server.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements/dev.txt $(SERVER)
	@echo "Installing the development tools into .venv"
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

# The peers that the benchmarks measure, and what only the long tests need, are left out until someone asks.
$(BENCH): requirements/bench.txt $(DEV)
	@echo "Installing the peers of the benchmarks into .venv"
	@$(PIP_INSTALL) --require-hashes -r requirements/bench.txt
	@touch $@

$(LONG): requirements/long.txt $(DEV)
	@echo "Installing the tools of the long tests into .venv"
	@$(PIP_INSTALL) --require-hashes -r requirements/long.txt
	@touch $@

# Also true when the link is there and the interpreter behind it is gone; --clear then takes the stamps away too.
$(BIN)/python:
	@for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: $(if $(PYTHON),$(PYTHON) is not a Python 3.11 or newer,no Python 3.11 or newer on PATH; name one with PYTHON=)" >&2; \
	    exit 1; \
	fi; \
	if ! "$$found" -c 'import venv, ensurepip' 2>/dev/null; then \
	    package=$$("$$found" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    echo "make: $$found cannot make virtual environments; on Debian: apt install $$package" >&2; \
	    exit 1; \
	fi; \
	"$$found" -m venv --clear .venv
