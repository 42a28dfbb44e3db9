# The two commands a newcomer needs are `make run` and `make test`; each makes .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.PHONY: run test install lint bench loadtest clean

run: install            ## two simulated replicas, the router, a check of every protocol; then serves
	$(BIN)/router up $(ARGS)

test: install           ## every test
	$(BIN)/python -m pytest $(ARGS)

install: $(STAMP)       ## .venv with everything but the peers of the benchmark

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[backend,loadtest,test,lint]'
	touch $(STAMP)

lint: install           ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install          ## against Envoy, nginx, HAProxy and sglang-router, in one interleaved run
	$(BIN)/python -m loadtest.compare $(ARGS)

loadtest: install       ## locust, headless, against `router up`
	$(BIN)/python -m loadtest.run $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
