# Every target sets up what it needs first; the second time that takes less than a second.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test mutants lint docs bench bench-large bench-refresh bench-economy soak bag replay \
  ask check calibrate calibrate-tabletop train-tabletop eval-tabletop lock clean distclean

SETUP := tools/setup_env.sh
RUN := . tools/env.sh;

# The ROS 2 that `make setup` brings and everything runs with: make test ROS=jazzy. Each has folders of its own.
ROS ?= kilted
export ROS
BIN := install$(if $(filter kilted,$(ROS)),,-$(ROS))/vlm_reuse_node/lib/vlm_reuse_node
LINTED := $(wildcard setup.py vlm_reuse_node launch test tools bench examples)

# Arguments for the program that a target runs: make test ARGS='-k budget', make demo ARGS=--help
ARGS ?=

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24
	@echo; echo 'ROS=jazzy behind a command takes ROS 2 Jazzy in place of Kilted; PYTHON=/path/to/python another Python (3.11 or 3.12).'

setup: ## make the environment, install pinned wheels, build both packages (1.5 GB, two to five minutes)
	@$(SETUP)

demo: setup ## run a camera, the node and a planner in three processes; results in out/demo/
	@$(RUN) $(BIN)/demo $(ARGS)

test: setup ## run all tests
	@$(RUN) python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

mutants: setup ## find small changes of the core that no test notices; minutes a file: make mutants ARGS='change'
	@export OPENBLAS_NUM_THREADS=1; $(RUN) python tools/mutants.py $(ARGS)

lint: setup ## check format, lint, types and package.xml
	@$(RUN) ruff format --check -q $(LINTED)
	@$(RUN) ruff check -q $(LINTED)
	@$(RUN) mypy --no-error-summary
	@$(RUN) python -c 'import sys; from xml.etree import ElementTree; list(map(ElementTree.parse, sys.argv[1:]))' \
	  package.xml vlm_reuse_interfaces/package.xml
	@echo 'lint: clean'

docs: ## write the tables of the docs from the interface files and config.py
	@python3 tools/interface_docs.py

bench: setup ## measure the cost of questions and image callbacks; a quarter of an hour
	@$(RUN) for script in bench/followup.py bench/node_callback.py; do echo "== $$script"; python "$$script"; done

bench-large: setup ## measure questions on a model of real size, for a GPU: make bench-large ARGS='--precision 4-bit'
	@$(RUN) python bench/large.py $(ARGS)

bench-refresh: setup ## measure time and drift of refreshes; a quarter of an hour
	@$(RUN) for script in bench/change.py bench/refresh.py bench/vision_share.py; do echo "== $$script"; python "$$script"; done

bench-economy: setup ## total work and latency against cold-dense; an hour: make bench-economy ARGS='BAG'
	@$(RUN) python bench/economy.py $(ARGS)

soak: setup ## watch memory and queue under load, eight minutes: make soak ARGS='--minutes 60'
	@$(RUN) python bench/soak.py $(ARGS)

bag: setup ## write a tabletop bag: make bag ARGS=--help
	@$(RUN) $(BIN)/make_bag $(ARGS)

replay: setup ## replay bags and write a report: make replay ARGS='BAG --questions FILE' (docs/replay.md)
	@$(RUN) $(BIN)/replay $(ARGS)

ask: setup ## ask about a picture or a recording, without a node: make ask ARGS='"what is there?" --picture FILE'
	@$(RUN) $(BIN)/ask $(ARGS)

check: setup ## check a model on this machine: make check ARGS='--model NAME' (docs/check.md)
	@$(RUN) $(BIN)/check $(ARGS)

train-tabletop: ## train the embedded model (hours; in a separate environment with torch)
	@$(SETUP) train
	@.venv-train/bin/python tools/train_tabletop.py $(ARGS)

calibrate: setup ## find out on a recording how far a model may be patched: make calibrate ARGS='BAG --model M'
	@$(RUN) $(BIN)/calibrate $(ARGS)

calibrate-tabletop: setup ## calibrate the embedded model on bags of its own generator; a quarter of an hour
	@$(RUN) python tools/calibrate_tabletop.py $(ARGS)

eval-tabletop: setup ## measure how well the embedded model answers, through mlx-vlm
	@$(RUN) python tools/eval_tabletop.py $(ARGS)

lock: ## write requirements.txt from requirements-kilted.in (ROS=jazzy: requirements-jazzy.txt)
	@tools/lock_requirements.sh $(ROS)

clean: ## remove build results and out/; keep the environments
	rm -rf build build-jazzy install install-jazzy log out .pytest_cache .mypy_cache .ruff_cache

distclean: clean ## also remove the environments
	rm -rf .venv .venv-jazzy .venv-train
