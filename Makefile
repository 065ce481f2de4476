# `make` alone prints what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# No dependency of ours reports anything to anybody.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/core ## Install, build the model line on the built-in digits, print the table of variants
	dvc repro
	@echo && python -m pipelines.summary build
	@echo && echo "Next: open build/report/index.html; 'make ui' opens MLflow and Prefect; docs/tutorial.md goes on from here."

ui: .venv/core ## Start MLflow, Prefect and a worker on this machine; Ctrl-C stops them
	python -m flows.ui

# A file's tests stay together, because they share servers. Two processes with a thread for each core wait for each other.
test: .venv/test ## Install, then run all tests, two files at a time
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/test ## Lint, types and the declared graph: seconds
	ruff check
	ruff format --check
	mypy
	python -m pytest tests/test_dag.py tests/pipelines/test_check.py

bench: .venv/bench ## Measure what the line costs, and INT8 beside FP32 and the peers, as ratios
	python -m benchmarks.line
	python -m benchmarks.targets --write

schema: .venv/core ## Write params.schema.json anew from the typed sections
	python -m pipelines.check --schema

docs: .venv/core ## Write docs/reference/ anew from the docstrings and the schema
	PYTHONPATH=. python docs/reference.py

readme: .venv/core ## Write the README's table anew from the last build
	PYTHONPATH=. python docs/readme_table.py

constraints: ## Resolve the dependencies anew into constraints.txt
	uv pip compile pyproject.toml --all-extras --python-version 3.11 --no-header --no-annotate --upgrade -q -o constraints.txt

targets: .venv/targets ## Install the quantizers and runtimes of all hardware targets

clean: ## Remove what was built, but not the DVC cache
	rm -rf build

beyond := (coreml|executorch|litert|qnn)
# One set-up for everything: uv, bytecode compiled at install, versions held by constraints.txt.
install = $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' \
	|| { echo "Quantmill needs Python 3.11 or 3.12; call make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	test -x .venv/bin/python || $(PYTHON) -m venv .venv; \
	command -v uv >/dev/null || .venv/bin/python -m pip install --quiet uv; \
	uv pip install --quiet --python .venv/bin/python --compile-bytecode --constraint constraints.txt

# A target of params.yaml whose runtime is not in the core brings all of them.
.venv/core: pyproject.toml constraints.txt $(if $(shell grep -E 'runtime: *$(beyond)' params.yaml),.venv/targets)
	@$(install) -e . && touch $@

# The converter of LiteRT clashes with the rest: it has an environment of its own, inside this one.
.venv/targets: pyproject.toml constraints.txt constraints-litert.txt
	@$(install) -e '.[targets]' && uv venv --quiet --clear --python .venv/bin/python .venv/litert && \
	uv pip install --quiet --python .venv/litert/bin/python --compile-bytecode --constraint constraints-litert.txt \
	litert-torch onnx2torch onnxruntime && touch $@

.venv/test: pyproject.toml constraints.txt .venv/targets
	@$(install) -e '.[team,test,targets,yolo]' && touch .venv/core $@

.venv/bench: .venv/test
	@$(install) -e '.[bench]' && touch $@

.PHONY: help demo ui test check bench schema docs readme constraints targets clean
