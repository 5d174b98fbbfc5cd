PYTHON ?= python3
BIN := .venv/bin
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check serve lint format bench soak fuzz clean

demo: .venv/.installed
	$(BIN)/triton-taylorseer demo

test: lint
	$(BIN)/pytest -m "not triton" $(PARALLEL)
	$(BIN)/pytest -m triton $(PARALLEL)

check: lint
	$(BIN)/pytest -m "not (triton or compiles or trains or network)" $(PARALLEL)

serve: .venv/.installed
	$(BIN)/triton-taylorseer serve

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 -p triton_taylorseer_client

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed
	$(BIN)/python -m benchmarks.cpu

soak: .venv/.installed
	$(BIN)/python -m benchmarks.soak

# Requests that nobody would write, for ten minutes, and 500 cancels.
fuzz: .venv/.installed
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} CANCELS=500 $(BIN)/pytest -s --timeout 0 tests/e2e/test_fuzz.py tests/e2e/test_cancels.py

clean:
	rm -rf .venv out

# The CPU build of torch comes first: an unpinned one is gigabytes of CUDA. The server's wheel comes without its
# dependencies, which only its Python API needs.
.venv/.installed: pyproject.toml clients/python/pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar on torch==2.13.0
	$(BIN)/pip install --progress-bar on -e clients/python -e '.[dev]'
	$(BIN)/pip install --progress-bar on --no-deps nvidia-pytriton==0.7.0
	touch $@
