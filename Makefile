# The two commands a newcomer needs are `make run` and `make test`; each makes .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.PHONY: run test test-slow install compile lint bench bench-fleet bench-kv bench-quic bench-store loadtest autoscale-day clean

run: compile            ## two simulated replicas, the router, a check of every protocol; then serves
	$(BIN)/router up $(ARGS)

test: compile           ## every test but those marked slow
	$(BIN)/python -m pytest -m 'not slow' -n logical --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: compile      ## the others: the real SGLang on a CPU if it is installed, many seeds, long outages
	$(BIN)/python -m pytest -m slow $(ARGS)

install: $(STAMP)       ## .venv with everything but the other peers of the benchmark

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[store,backend,grpc,edge,loadtest,quic,test,lint,compile]'
	touch $(STAMP)

compile: install        ## the data path as machine code; without a C compiler it stays Python
	@$(BIN)/router compile --if-needed || echo 'not compiled: the router runs as Python, at up to twice the CPU'

lint: install           ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: compile          ## against Envoy, nginx, HAProxy and sglang-router, in one interleaved run
	$(BIN)/python -m loadtest.compare $(ARGS)

bench-fleet: compile    ## what tokens, regions and keys cost, and how fast a token is revoked
	$(BIN)/python -m loadtest.fleet $(ARGS)

bench-kv: compile       ## what each policy does to the engines' prefix caches, on simulated engines
	$(BIN)/python -m loadtest.kv $(ARGS)

bench-quic: compile     ## QUIC beside quic-portal, robots through the router, over bad networks and on the move
	$(BIN)/python -m loadtest.quic $(ARGS)

bench-store: compile    ## the store: delay, bootstrap, look-up, outage, churn, relay
	$(BIN)/python -m loadtest.store $(ARGS)

loadtest: compile       ## locust, headless, against `router up`
	$(BIN)/python -m loadtest.run $(ARGS)

autoscale-day: install  ## a day of bursty traffic through the autoscaler's policy, in virtual time; a picture
	$(BIN)/python -m loadtest.autoscale_day $(ARGS)

clean:
	-$(BIN)/router compile --clean
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
