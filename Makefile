# `make demo` and `make test` do all their own set-up: a virtual environment in .venv, with what constraints.txt pins.
# `make CONSTRAINTS= …` takes the newest versions that pyproject.toml allows instead.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
DEMO := runs/digits_lenet5

.PHONY: help install demo test test-slow soak docs lint format clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/installed  ## make .venv with the package and the tools of development

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[dev]"
	@touch $@

demo: .venv/installed  ## train LeNet-5 on real digits, in under a minute
	@$(BIN)/python -m experiments.train --config=experiments/configs/digits.py:lenet5 --workdir=$(DEMO)

test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# PyPI's PyTorch for Linux is CUDA's; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives a smaller one.
.venv/installed-torch: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[torch]"
	@touch $@

test-slow: .venv/installed-torch  ## run the long tests too, those against PyTorch among them
	$(BIN)/python -m pytest -n 2 --dist worksteal

soak: .venv/installed  ## train for long, on disks that are full or gone and with clocks that jump
	$(BIN)/python -m pytest tests/soak

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[docs]"
	@touch $@

# The variable keeps Material from advertising its successor.
docs: .venv/installed-docs  ## build the documentation's site in build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/installed  ## check style, imports between the floors, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed  ## bring the code into the common form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make has made, but for runs/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
