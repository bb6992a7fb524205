# On a new machine with Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export RAY_AUTH_MODE := disabled
export RAY_USAGE_STATS_ENABLED := 0
export NO_MKDOCS_2_WARNING := 1
# Two processes of pytest share the test files that start no Ray. Two clusters of Ray side by side need too much memory.
SIDE_BY_SIDE := -n 2 --dist loadfile

.PHONY: setup demo demo-pacs test test-unit faults fuzz lint docs bench lock clean

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; choose one with make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/python jobs/demo.py

demo-pacs: setup
	@test -e runs/demo/model/model.json || $(BIN)/python jobs/demo.py
	$(BIN)/python benchmarks/pacs_demo.py

test: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not (ray or faults)"
	$(BIN)/pytest -m "ray and not faults"

test-unit: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not (ray or server or browser or slow or faults)"

faults: setup
	$(BIN)/pytest -m faults

fuzz: setup
	$(BIN)/python tests/fuzz/run.py --files 50000 --seed 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python .ci/audit.py

docs: setup
	$(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python jobs/bench.py

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --quiet --no-emit-index-url --no-emit-find-links --no-annotate --no-header --python-version 3.11 --output-file requirements.lock

clean:
	rm -rf .venv build site *.egg-info
