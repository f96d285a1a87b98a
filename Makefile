# `make setup` prepares .venv; `make recipe` runs the whole recipe in miniature; `make test` runs the tests.
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: setup recipe smoke test lint clean

setup: $(VENV)/.ready

# torch first and alone: with it in place, nothing that follows pulls a CUDA build.
$(VENV)/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet torch==2.13.0
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $@

recipe: setup
	$(RUN)/openmath recipe run examples/tiny.yaml --output runs/tiny

smoke: setup
	$(RUN)/openmath recipe run examples/smoke.yaml --output runs/smoke

test: setup
	$(RUN)/python -m pytest

lint: setup
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy && $(RUN)/lint-imports

clean:
	rm -rf $(VENV) runs
