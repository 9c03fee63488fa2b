# Two commands do everything: `make demo` and `make test`. Only Python 3.11+ and the package registries are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= runs/demo
BORN   ?= runs/born
SEEDS  ?= 1

.PHONY: help demo born test setup bench lint clean

help:            ## this list
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

demo: setup      ## train the built-in model on leaps and bridges; ends with the report's path
	$(BIN)/intaglio steps smollm2 --out $(DEMO) --force

born: setup      ## train a small attention model and watch an induction head being born; SEEDS=5: is it always the same head?
	$(BIN)/intaglio born --out $(BORN) --seeds $(SEEDS) --force

test: $(VENV)/.test setup  ## everything: rules, laws, pages
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --jaxtyping-packages=intaglio.measure,intaglio.model,beartype.beartype

setup: $(VENV)/.ready  ## install into .venv and fetch the built-in model once
	$(BIN)/python -c "from intaglio.model.subject import ensure_builtin; ensure_builtin()"

bench: $(VENV)/.test   ## speed as a ratio to the plain training step
	$(BIN)/python benchmarks/overhead.py

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Intaglio needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:           ## remove the environment and build products (runs are kept)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
