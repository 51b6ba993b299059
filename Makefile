# Everything runs in .venv, which the first target that needs it makes. It is left alone until one of the files that
# say what belongs in it changes.

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c '$(IS_NEW_ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow lint bench schema clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## install rollout and its tools into .venv (about a minute, the first time)

# Some systems ship Python without ensurepip: there, this Python's own pip installs one into the new environment.
$(INSTALLED): pyproject.toml constraints.txt hatch_build.py
	@test -n "$(PYTHON)" || { echo "rollout needs Python 3.11 or newer and found none (tried: $(PYTHONS));" \
		"install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || { echo "rollout needs Python 3.11 or newer; $(PYTHON) is not;" \
		"name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
		$(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

train: $(INSTALLED) ## train CartPole until it is solved
	$(BIN)/rollout train configs/cartpole_ppo.toml

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(INSTALLED) ## run the slow tests: learning curves, many processes
	$(BIN)/python -m pytest -m slow --timeout 900

lint: $(INSTALLED) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(INSTALLED) ## run every benchmark, one after the other
	@failed=; for file in $(filter-out benchmarks/harness.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

schema: $(INSTALLED) ## write configs/schema.json anew
	$(BIN)/python -m rollout.schema

clean: ## remove what tools left behind (not .venv, not runs)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find rollout/ envs learners tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
