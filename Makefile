# `make setup` prepares .venv; `make recipe` runs the whole recipe in miniature; `make test` runs the tests.
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin
JOBS ?= 2

.PHONY: setup recipe smoke real test test-slurm test-browser test-versions lint docs constraints image-test clean

setup: $(VENV)/.ready

# torch first and alone: with it in place, nothing that follows pulls a CUDA build.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet torch==2.13.0
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

recipe: setup
	$(RUN)/openmath recipe run examples/tiny.yaml --output runs/tiny

smoke: setup
	$(RUN)/openmath recipe run examples/smoke.yaml --output runs/smoke

# A real model learns the tool: make real MODEL=folder/of/Qwen2.5-Coder-0.5B-Instruct (an hour on two fast cores, 14 GB).
real: setup
	@test -f "$(MODEL)/config.json" || { echo "make real MODEL=DIR: the folder of Qwen2.5-Coder-0.5B-Instruct, as the Hugging Face Hub has it"; exit 2; }
	mkdir -p examples/models && ln -sfn "$(abspath $(MODEL))" examples/models/Qwen2.5-Coder-0.5B-Instruct
	$(RUN)/openmath recipe run examples/qwen2.5-0.5b-cpu.yaml --output runs/real

# In $(JOBS) processes, the tests of a file in one of them; make test JOBS=0 is one after another.
test: setup
	$(RUN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# What runs on a cluster, on a real Slurm with four pretended nodes; Debian's packages are installed where they are missing.
test-slurm: setup
	command -v slurmctld >/dev/null && command -v munged >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && $$sudo apt-get install --yes slurm-wlm munge; }
	$(RUN)/python -m pytest -m 'manual or not manual' tests/launch

# Pages in headless Chromium; Debian's package is installed where it is missing.
test-browser: setup
	command -v chromium >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && $$sudo apt-get install --yes chromium; }
	$(RUN)/python -m pytest tests/browser

# The numeric tests with the oldest and the newest torch, transformers and megatron-core; Python 3.12, 12 GB, half an hour.
test-versions:
	tests/versions.sh

lint: setup
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy && $(RUN)/lint-imports

# The documentation site, strictly: build/docs/index.html. Its tools are installed at the first call.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.ready
	$(RUN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# The Dockerfile is built and run without Docker and without a registry (root, debootstrap, buildah, podman); 10 minutes.
image-test:
	tests/containers/image.sh

# The newest versions that pyproject.toml allows, in a virtual environment of their own, become those that everybody gets.
constraints:
	$(PYTHON) -m venv build/newest
	build/newest/bin/pip install --quiet torch==2.13.0
	build/newest/bin/pip install --quiet --editable '.[dev,docs,datasets]'
	{ sed '/^#/!d' constraints.txt; echo torch==2.13.0; build/newest/bin/pip freeze --exclude-editable | grep -v '^torch=='; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) runs build
