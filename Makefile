.DEFAULT_GOAL := help
.PHONY: help demo test check docs cover chaos faults fuzz bench strategies k8s release lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What goes into the locks: versions and hashes, no word about where they were found or on which machine.
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links pyproject.toml

CORES := */participant/lifecycle.py,*/participant/work.py,*/participant/lane.py,*/participant/moves.py,*/participant/proximal.py,$\
	*/coordinator/rounds.py,*/coordinator/run.py,*/coordinator/ending.py,*/coordinator/evaluation.py,*/coordinator/goal.py,*/coordinator/attempt.py,*/coordinator/backlog.py,*/coordinator/history.py,*/coordinator/plan.py,*/coordinator/presence.py,$\
	*/coordinator/registrations.py,*/coordinator/reliability.py,*/coordinator/seats.py,*/coordinator/selection.py,*/coordinator/shards.py,*/coordinator/silos.py,*/coordinator/failed_attempts.py,$\
	*/aggregator/evaluation.py,*/aggregator/ledger.py,*/aggregator/guards.py,*/aggregator/strategies.py,*/aggregator/averages.py,*/aggregator/robust.py,*/aggregator/optimisers.py,*/fedround/common/evaluation.py,*/tensors/weights.py,*/tensors/values.py,*/tensors/measures.py,*/common/wire.py,*/common/books.py,*/common/backoff.py,*/http/budgets.py

# Each file of tests on one process; but what has an engine or a cluster to itself, one after the other.
SIDE_BY_SIDE = $(if $(filter tests/container% tests/cluster%,$(ARGS)),,--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

# What runs pytest: `make cover` measures the same tests.
RUN := python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready ## watch a whole federation train on this machine
	@$(BIN)/fedround demo $(ARGS)

test: $(VENV)/ready ## run the tests; make test ARGS="-k ledger -x"
	@$(BIN)/$(RUN) -m pytest $(SIDE_BY_SIDE) $(ARGS)

check: $(VENV)/ready ## lint, format, types, layers, docs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@PYTHONPATH=service $(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/docs.py --check
	@$(BIN)/python tools/prose.py

docs: $(VENV)/ready ## build the documentation site: build/docs/index.html
	@$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

cover: $(VENV)/ready ## run the tests and check their coverage: all branches of the cores, 98 % in total
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test RUN="coverage run"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --skip-covered --show-missing
	@$(BIN)/coverage report --include="$(CORES)" --fail-under=100 --format=total > /dev/null

chaos: $(VENV)/ready ## break processes, links and disks, and check every model; make chaos SECONDS=600 SEED=7 CASE=platform
	@$(BIN)/python tests/chaos/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(CASE),--case $(CASE))

faults: $(VENV)/ready ## measure recovery and attacks for docs/explanation/faults.md; make faults TIMES=5
	@$(BIN)/python tests/chaos/measure.py $(if $(TIMES),--times $(TIMES))

fuzz: $(VENV)/ready ## feed every parser malformed input; make fuzz MINUTES=30 SEED=7 ONLY=updates
	@$(BIN)/python tests/fuzz/run.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only '$(ONLY)')

bench: $(VENV)/ready ## measure performance; see bench/README.md
	@$(BIN)/python bench/run.py $(ARGS)

strategies: $(VENV)/ready ## train with each strategy, and write the tables of docs/explanation/strategies-compared.md
	@PYTHONPATH=tests $(BIN)/python -m bench.strategies

k8s: $(VENV)/ready ## write the generated files of the charts and k8s/; needs helm
	@$(BIN)/python tools/charts.py

release: $(VENV)/ready ## build all files of a release into dist/; needs helm and docker; make release ARGS="--skip images"
	@$(BIN)/python tools/release.py $(ARGS)

lock: $(VENV)/ready ## update requirements/*.txt
	@$(BIN)/python -m pip install --quiet uv
	@printf "hatchling\n" | $(COMPILE:pyproject.toml=-) --output-file requirements/build.txt
	@$(COMPILE) --output-file requirements/runtime.txt
	@$(COMPILE) --group dev --output-file requirements/dev.txt

clean: ## remove the virtual environment and all built files
	@rm -rf $(VENV) .cache build dist .coverage* htmlcov .hypothesis .*_cache
	@find service tests tools bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Everything from the lock; done again only when the lock changes.
$(VENV)/locked: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedround needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV), once" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@touch $@

# The project itself as it stands here: its commands and its metadata.
$(VENV)/ready: $(VENV)/locked pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
