PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-browser lint wheel-test docs clean

demo: $(INSTALLED)  ## the main job on embedded digits: convert, train, attack, eval, diversity
	$(BIN)/python recipes/demo.py

test: $(INSTALLED)  ## all tests, on all cores
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal  # or each process that a test starts compiles rlskit

test-browser: $(INSTALLED)  ## the report's page in a real Chromium, or why there is none
	tests/browser/run.sh

lint: $(INSTALLED)  ## formatting, ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel-test:  ## the wheel alone, without torchattacks, in an environment outside the checkout
	PYTHON=$(PYTHON) tests/wheel.sh

docs: $(DOCS)/.installed  ## the site of docs/ into site/, strictly: a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --quiet --strict

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# An environment of its own: Material needs a newer requests than torchattacks allows. It holds the
# extra `docs` alone, without rlskit, whose docstrings are read and not run.
$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	sed '/^# The extra torchattacks/,$$d' constraints.txt > $(DOCS)/constraints.txt
	$(PYTHON) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["docs"], sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet -c $(DOCS)/constraints.txt -r $(DOCS)/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS) site demo runs .pytest_cache .mypy_cache .ruff_cache
