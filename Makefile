# Two commands for people: `make demo` and `make test`. Each works alone, in any order.
VENV := .venv
PYTHON ?= python3
# An active virtual environment is used as it is; otherwise the project makes its own.
BIN := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin,$(VENV)/bin)
STAMP := $(BIN)/.plait-installed
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all format lint wheel docs pictures bench gpu-check clean

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { echo "plait: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "plait: installing into $(BIN) (torch is a large download the first time)"
	@$(BIN)/python -c "import torch, sys; v = tuple(map(int, torch.__version__.split('+')[0].split('.')[:2])); sys.exit(v != (2, 13))" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet "torch>=2.13,<2.14"
	@$(BIN)/python -m pip install --quiet --editable ".[test,hf]"
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -q -o addopts="--import-mode=importlib" -m ""

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

lint: $(STAMP)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	@mkdir -p .lint && ln -sfn $(CURDIR) .lint/plait   # so that `plait` is this folder for the checker
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

wheel: $(STAMP)
	@rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python tests/wheel.py build/wheel

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m mkdocs build --strict --quiet

pictures: $(STAMP)
	$(BIN)/python -m plait.tests.api.view.pictures docs/pictures

bench: $(STAMP)
	$(BIN)/python benchmarks/planning_time.py

gpu-check: $(STAMP)
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build *.egg-info report.html
