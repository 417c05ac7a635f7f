PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The commands in dvc.yaml say `python`: the one of the environment.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install repro paper test lint distil clean

# The first target, so that `make` alone runs it.
help:     ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Options of repro and paper: JOBS=4 (experiments at a time), WEIGHTS=/path/to/vgg19.pth'

install: $(VENV)/installed  ## install everything into .venv

repro: $(VENV)/installed    ## compute the experiments that have changed, and the report
	$(if $(WEIGHTS),python -m pipeline preset weights '$(WEIGHTS)')
	python -m pipeline run $(if $(JOBS),--jobs '$(JOBS)')

paper: $(VENV)/installed    ## the figures with the paper's pictures, VGG-19 and 512 pixels: changes params.yaml
	python -m pipeline preset paper
	$(MAKE) repro

test: lint                  ## lint, check types, test
	python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed     ## check style, formatting, types and the layers of imports
	ruff check
	ruff format --check
	mypy
	lint-imports --no-cache

distil: $(VENV)/installed   ## teach the small network anew, as params.yaml says (100 minutes)
	python -m pipeline.stages.distil

clean:                      ## remove all results; the environment and DVC's cache stay
	rm -rf data/plan data/images data/backbone data/experiments data/status data/checkpoints
	rm -rf data/removed data/downloads data/distillation benchmarks/runs
	find reports -mindepth 1 ! -name README.md -delete
	rm -rf .mypy_cache .pytest_cache .ruff_cache

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
