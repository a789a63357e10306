# Two commands are enough: `make demo` and `make test`. Both do all the set-up.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: help setup demo test lint types test-peers test-qgis plugin wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1" setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group test --group train --group peers --group notebooks --group check
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-deps --no-build-isolation sam2==1.1.0
	touch $@

setup: $(STAMP) ## Prepare .venv with everything that tests and benchmarks need

demo: $(STAMP) ## Segment the example scene: polygons, a table and a preview picture
	$(BIN)/geosam2 demo --output demo_output

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -q -m "not slow and not qgis"

lint: $(STAMP) ## Format and lint checks
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(STAMP) ## Strict type check of both packages
	$(BIN)/mypy

test-qgis: $(STAMP) ## QGIS tests: installs Debian's QGIS when it is missing
	bash tests/qgis/run.sh

plugin: $(STAMP) ## Build dist/geosam2_qgis.zip
	$(BIN)/python qgis_plugin/build.py

wheel: $(STAMP) ## Build the wheel
	$(BIN)/python -m build --wheel --outdir dist

clean: ## Remove what was built
	rm -rf .venv dist build demo_output .ci/out .ci/*-venv
