# One command: make run. PYTHON chooses the interpreter, KEEP=0 stops the server at the end.
PYTHON ?= python3
STAMP := .venv/.installed
BIN := .venv/bin

.PHONY: run up test check chaos bench results ablation clean install

run: install
	@$(BIN)/capgap up --run minidisc $(if $(filter 0,$(KEEP)),--no-keep)

up: install
	@$(BIN)/capgap up

test: install
	@$(BIN)/python -m pytest -q

check: install
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_architecture.py
	@$(BIN)/python -m pytest -q --ignore=tests/test_architecture.py

# Kills real runs at random moments and resumes them, N times (about a minute each).
chaos: install
	@$(BIN)/python tests/chaos.py $(or $(N),50)

# Measures speed, beside peers, which it installs (hours on a machine that does nothing else). The first publishes what
# the README says of checkpoints, the others print. Two of them need CAPGAP_SHARED, the folder of real data and models.
bench: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python tests/benchmarks/checkpoints.py
	@$(BIN)/python tests/benchmarks/distillation.py
	@$(BIN)/python tests/benchmarks/quality.py
	@$(BIN)/python tests/benchmarks/stages.py
	@$(BIN)/python tests/benchmarks/loss_heads.py
	@$(BIN)/python tests/benchmarks/mixtures.py
	@$(BIN)/python tests/benchmarks/decoders.py

# Makes every published run (hours), then the README's table: make results DATA=<folder of the sets> TEACHER=<folder>
results: install
	@$(BIN)/python -m flows.results run --data "$(DATA)" --teacher "$(TEACHER)" && $(BIN)/python -m flows.results table

# Makes the published ablation of MixKD (hours), then its table: make ablation DATA=<folder of the sets> TEACHER=<folder>
ablation: install
	@$(BIN)/python -m flows.ablation run --data "$(DATA)" --teacher "$(TEACHER)" $(ARGS) && $(BIN)/python -m flows.ablation table

# Installs again only where what is asked for has changed: the stamp holds the hash of both files.
install:
	@hash="$$(cat pyproject.toml constraints.txt | $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')" \
	    || { echo "make: $(PYTHON) does not run; say which Python to use: make PYTHON=python3.11 ..." >&2; exit 1; }; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$$hash" ]; then \
	    $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"make: {sys.executable} is Python %d.%d; capgap needs 3.11 to 3.13: make PYTHON=python3.11 ..." % v)' || exit 1; \
	    echo "installing into .venv: a few minutes, once" >&2; \
	    test -x $(BIN)/python || $(PYTHON) -m venv .venv || exit 1; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || exit 1; \
	    echo "$$hash" > $(STAMP); \
	fi

# Removes what tools made; results stay in artifacts/.
clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find capgap_core tasks flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
