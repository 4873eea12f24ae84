# Two commands do everything: `make demo` and `make test`. Both set up first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Root's tests need root: loop devices, mounts.
AS_ROOT := $(SUDO) $(if $(SUDO),env PATH="$$PATH",)

TRACKER := src/freezeframe/tracking/bpf/tracker.bpf

.PHONY: setup demo test lint bench lock clean packages packages-bench

setup: $(VENV)/.ready $(TRACKER).o $(VENV)/.compiled

# Once, not each time the program starts: some machines are set not to keep what Python compiles.
$(VENV)/.compiled: $(shell find src -name '*.py') | $(VENV)/.ready
	$(BIN)/python -m compileall -q src
	touch $@

# The kernel side of tracking. The install below builds it too; this is for when it changes.
$(TRACKER).o: $(TRACKER).c $(dir $(TRACKER))tracker.h tools/build-bpf | $(VENV)/.ready
	tools/build-bpf

$(VENV)/.ready: requirements.lock pyproject.toml tools/install-packages
	tools/install-packages run build
	test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear $(VENV) 2>/dev/null \
	  || { tools/install-packages --venv; $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

packages:
	tools/install-packages run test

packages-bench:
	tools/install-packages run test bench

demo: setup packages
	$(AS_ROOT) $(BIN)/python -m freezeframe.testing.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three processes, shared out by tests/conftest.py: one of them mostly waits for devices. Then the
# virtual machines, each of which takes two cores.
test: setup packages
	$(AS_ROOT) $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder \
	  tests/unit tests/contract tests/cli tests/root
	$(AS_ROOT) $(BIN)/python -m pytest tests/vm

bench: setup packages-bench
	$(AS_ROOT) $(BIN)/python bench/run.py || [ $$? = 1 ]
	$(AS_ROOT) $(BIN)/python bench/hot.py || [ $$? = 1 ]
	$(AS_ROOT) $(BIN)/python bench/tracking.py
	$(AS_ROOT) $(BIN)/python bench/writers.py || [ $$? = 1 ]
	$(AS_ROOT) $(BIN)/python bench/volumes.py
	$(AS_ROOT) $(BIN)/python bench/access.py || [ $$? = 1 ]
	$(AS_ROOT) $(BIN)/python bench/boot.py || [ $$? = 1 ]
	$(AS_ROOT) $(BIN)/python bench/boot.py --firmware uefi || [ $$? = 1 ]

# Resolve the dependencies anew: names, versions and hashes, no addresses.
lock:
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --extra dev -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) $(TRACKER).o build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
