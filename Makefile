# make demo | test | lint | clean | bench | bench-accountants | bench-search | bench-zeroth-order |
# bench-federated | bench-samplers. The first of them builds .venv with the pinned versions.
#   make PYTHON=python3.12 test     with another interpreter (3.11 or later)
#   make TORCH_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu' test
#                                   the small CPU build of torch, where the registry's is CUDA's
PYTHON ?= python3
TORCH_ARGS ?=
THREADS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-input -c constraints.txt
# No run of ours may depend on the network or on a display; a user's own shell is left as it is.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.PHONY: demo test lint bench bench-accountants bench-search bench-zeroth-order bench-federated bench-samplers clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=$(THREADS) $(BIN)/dpmech demo --out demo

# A process a core; each test counts on one thread (tests/conftest.py).
test: $(VENV)/.stamp
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(THREADS) --dist worksteal

lint: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/search_grid.py
	$(OFFLINE) OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/search_single_release.py

bench-accountants: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python \
		benchmarks/compare_accountants.py -o docs/explanation/accountants-benchmark.md

bench-search: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python \
		benchmarks/search_families.py -o docs/explanation/search-benchmark.md

# DATA: a folder that holds sst2/ and banking77/; without it the embedded data set.
bench-zeroth-order: $(VENV)/.stamp
	cd benchmarks && $(OFFLINE) OMP_NUM_THREADS=1 ../$(BIN)/python \
		zeroth_order.py $(if $(DATA),--data-dir $(abspath $(DATA))) -o ../docs/explanation/zeroth-order.md

bench-federated: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python \
		benchmarks/federated.py -o docs/explanation/federated-benchmark.md

bench-samplers: $(VENV)/.stamp
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python \
		benchmarks/samplers.py -o docs/explanation/samplers-benchmark.md

# torch goes first, alone: whichever build of it the registry offers settles the rest.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Expected Python >= 3.11, got %d.%d from $(PYTHON); name a newer one: make PYTHON=python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || { echo "Creating $(VENV)" >&2; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned versions into $(VENV) (a few minutes, once)" >&2
	@$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable '.[all]'
	@touch $@

clean:
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
