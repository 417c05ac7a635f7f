# make repro   install what is missing, then run what params.yaml asks for and has not been run
# make paper   the same figures with the paper's own pictures, VGG-19 and 512 pixels
# make test    install what is missing, then lint, type-check and test
# make distil  teach the small network anew, by params.yaml: 100 minutes
# make clean   remove what these computed; the environment and DVC's cache stay

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The commands in dvc.yaml say `python`: the one of the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro paper test lint distil clean

# WEIGHTS=/path/to/vgg19.pth takes VGG-19 from a file, and writes that into params.yaml.
# JOBS=4 runs four experiments at a time, JOBS=1 one after another.
repro: $(VENV)/installed
	$(if $(WEIGHTS),python -m pipeline preset weights '$(WEIGHTS)')
	python -m pipeline.experiments.runner $(if $(JOBS),'$(JOBS)')

# Writes the paper's network, size and pictures into params.yaml; WEIGHTS as above.
paper: $(VENV)/installed
	python -m pipeline preset paper
	$(MAKE) repro

distil: $(VENV)/installed
	python -m pipeline.stages.distil

# A file at a time on each core.
test: $(VENV)/installed lint
	python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

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
	rm -rf data/plan data/images data/backbone data/experiments data/status data/checkpoints data/downloads data/distillation
	rm -rf reports/*.html reports/summary.md reports/experiments reports/media reports/sheets
	rm -rf benchmarks/runs .mypy_cache .pytest_cache .ruff_cache
