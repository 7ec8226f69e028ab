PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-browser lint wheel-test clean

demo: $(INSTALLED)  ## the main job on embedded digits: convert, train, attack, eval, diversity
	$(BIN)/python recipes/demo.py

test: $(INSTALLED)  ## all tests, on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

test-browser: $(INSTALLED)  ## the report's page in a real Chromium, or why there is none
	tests/browser/run.sh

lint: $(INSTALLED)  ## formatting, ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel-test:  ## the wheel alone, without torchattacks, in an environment outside the checkout
	PYTHON=$(PYTHON) tests/wheel.sh

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache
