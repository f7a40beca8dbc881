# Two commands matter: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := $(VENV)/.demo
READY  := $(VENV)/.ready
CLOUD  := build/cloud

.PHONY: demo test slow cloud lint format mutants bench clean system

demo: $(DEMO) system
	$(BIN)/cloister demo --dir cloister-demo --force

test: $(READY) system
	$(BIN)/python -m pytest -n 2 -m "not slow" --durations=15

slow: $(READY) system
	$(BIN)/python -m pytest -m slow --durations=15

cloud: $(CLOUD)/.ready system
	$(CLOUD)/bin/python -m pytest tests/cloud --durations=5

lint: $(READY)
	$(BIN)/ruff check --no-cache src tests benchmarks examples scripts
	$(BIN)/ruff format --check src tests benchmarks examples scripts
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --no-cache --fix src tests benchmarks examples scripts
	$(BIN)/ruff format src tests benchmarks examples scripts

mutants: $(READY) system
	$(BIN)/python scripts/mutants.py

bench: $(READY) system
	for claim in benchmarks/[a-z]*.py; do $(BIN)/python $$claim --quick || exit 1; done

# torch comes first and from the constraints, so that no other package's range pulls in a larger build. What the demo's
# enclaves run is measured whole, so it is no more than they need; tests add theirs. Enclaves read no bytecode that pip
# made: they compile their own from measured source, once for each state of it.
$(DEMO): pyproject.toml constraints.txt | system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,postgres]"
	$(BIN)/python -m compileall -q src
	$(BIN)/cloister demo --prepare
	touch $(DEMO)

$(READY): $(DEMO)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,postgres,privacy,linear]" --group dev
	$(BIN)/cloister demo --prepare
	touch $(READY)

# Clients of cloud storage and emulators of it, apart from what enclaves measure. Azure's emulator comes by npm.
$(CLOUD)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLOUD)
	$(CLOUD)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(CLOUD)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[s3,azure,gcs]" --group cloud
	if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(CLOUD) azurite; fi
	touch $(CLOUD)/.ready

system:
	@PYTHON=$(PYTHON) sh scripts/system-packages.sh

clean:
	rm -rf $(VENV) $(CLOUD) cloister-demo
