# make demo    set up, fetch the embedded model, play the demo (CPU, no account)
# make test    set up and run the whole test suite
# make test-gpu  the tests that need a CUDA device and Triton
# make check   ruff, mypy --strict, import-linter
# make bench   the benchmarks that README quotes
PYTHON ?= python3
# Installed first, so that a CPU build which pip can find (a local wheel, a configured index) is not replaced by a newer release
# with CUDA libraries.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-gpu check bench clean
.DEFAULT_GOAL := demo

$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("npc-engine needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --progress-bar on "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/npc-engine model pull
	$(BIN)/npc-engine play worlds/ninestep --scenario demos/green-lamp/scenario.yaml --compare

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.dev
	@$(BIN)/python -c 'import sys, torch; from importlib.util import find_spec; sys.exit(None if torch.cuda.is_available() and find_spec("triton") else "make test-gpu needs a CUDA device, and a torch that has CUDA: TORCH=... make test-gpu")'
	$(BIN)/python -m pytest tests/gpu -m gpu

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.runtime
	$(BIN)/npc-engine bench edit

clean:
	rm -rf $(VENV) build *.egg-info
