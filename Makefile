PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Recipes take these from the environment, as they were given: no character has a meaning in a path.
override PYTHON := $(value PYTHON)
override WEIGHTS := $(value WEIGHTS)
override JOBS := $(value JOBS)
export PYTHON WEIGHTS JOBS
# The environment's Python. The commands in dvc.yaml say `python`, and must find it too. `export
# PATH` would not do: the make of macOS (3.81) looks for a command in the PATH it was given itself.
RUN    := PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m

.PHONY: help install repro paper test lint distil clean

# The first target, so that `make` alone runs it.
help:     ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Options of repro and paper: JOBS=4 (experiments at a time), WEIGHTS=/path/to/vgg19.pth'

install: $(VENV)/installed  ## install everything into .venv

repro: $(VENV)/installed    ## compute the experiments that have changed, and the report
	$(if $(WEIGHTS),$(RUN) pipeline preset weights -- "$$WEIGHTS")
	$(RUN) pipeline run $(if $(JOBS),--jobs="$$JOBS")

paper: $(VENV)/installed    ## the figures with the paper's pictures, VGG-19 and 512 pixels: changes params.yaml
	$(RUN) pipeline preset paper
	$(MAKE) repro

test: lint                  ## lint, check types, test
	$(RUN) pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed     ## check style, formatting, types and the layers of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

distil: $(VENV)/installed   ## teach the small network anew, as params.yaml says (100 minutes)
	$(RUN) pipeline.stages.distil

clean:                      ## remove all results, also W&B runs that were not uploaded; not DVC's cache
	rm -rf data/plan data/images data/backbone data/experiments data/status data/checkpoints
	rm -rf data/removed data/downloads data/distillation benchmarks/runs wandb
	find reports -mindepth 1 ! -name README.md -delete
	rm -rf .mypy_cache .pytest_cache .ruff_cache

$(VENV)/installed: pyproject.toml constraints.txt
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	"$$PYTHON" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
