# make repro   install what is missing, then run what params.yaml asks for and has not been run
# make test    install what is missing, then lint, type-check and test
# make distil  teach the small network anew, by params.yaml: about an hour
# make clean   remove what these computed; the environment and DVC's cache stay

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The commands in dvc.yaml say `python`: the one of the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test lint distil clean

# WEIGHTS=/path/to/vgg19.pth takes VGG-19 from a file, and writes that into params.yaml.
repro: $(VENV)/installed
	python -m pipeline.params $(if $(WEIGHTS),'$(abspath $(WEIGHTS))')
	dvc repro

distil: $(VENV)/installed
	python -m pipeline.stages.distil

test: $(VENV)/installed lint
	python -m pytest

lint: $(VENV)/installed
	ruff check
	ruff format --check
	mypy

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf data/images data/backbone data/experiments data/downloads data/distillation reports/index.html reports/media
	rm -rf benchmarks/runs .mypy_cache .pytest_cache .ruff_cache
