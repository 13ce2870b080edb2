# Everything starts here, from a bare clone with make and Python 3.11 or newer:
# `make` lists the targets. Each makes what it needs, and a second call reuses it.

# The first Python that is new enough; say PYTHON=... for another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
# Where the demo leaves its files.
OUT ?= torchkeep-demo

VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
FRAMEWORKS := .venv-frameworks
# How many processes test.
JOBS ?= $(shell python3 -c 'import os; print(min(os.cpu_count() or 1, 4))' 2>/dev/null || echo 2)
# How long each reader is fuzzed.
SECONDS ?= 600
OLDEST_TORCH := 2.13.0
PIP := -m pip --quiet --quiet --disable-pip-version-check install
# The theme reminds of its end of life in 2027 at every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-exact test-distributed check format docs bench fuzz test-oldest test-frameworks test-models test-training test-export test-crash architectures clean

help: ## list these targets
	@sed -n -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/demo.stamp ## train, kill, resume, prove, inspect and transfer: three minutes
	$(BIN)/torchkeep demo --out $(OUT)

test: check ## run the checks and all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest --doctest-modules src/torchkeep

test-exact: $(VENV)/dev.stamp ## kill every kind of run at every place, and compare its end bit for bit
	$(BIN)/python tests/checkpointing/exact_matrix.py

test-distributed: $(VENV)/dev.stamp ## runs of several ranks: kill them everywhere, and put each back by all others
	$(BIN)/python tests/checkpointing/layout_matrix.py
	$(BIN)/python tests/checkpointing/kill_trials.py --trials 200
	$(BIN)/python tests/checkpointing/exact_matrix.py --ranks 2 --stride 2 --jobs 1
	$(BIN)/python tests/checkpointing/exact_matrix.py --ranks 3 --stride 5 --jobs 1
	$(BIN)/python tests/checkpointing/exact_matrix.py --ranks 4 --stride 11 --jobs 1
	$(BIN)/python tests/checkpointing/exact_matrix.py --ranks 2 --spread fsdp --stride 5 --jobs 1
	$(BIN)/python tests/checkpointing/exact_matrix.py --ranks 3 --spread fsdp --stride 11 --jobs 1

check: $(VENV)/dev.stamp ## lint, formatting, types, layers, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs --quiet build --strict

format: $(VENV)/dev.stamp ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/dev.stamp ## serve the documentation on this machine
	$(BIN)/mkdocs serve

bench: $(VENV)/dev.stamp ## compare with torch and safetensors, side by side
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

fuzz: $(VENV)/fuzz.stamp ## fuzz the pickle machine and every reader, SECONDS=600 each
	$(BIN)/python fuzz/seeds.py
	@for target in $$($(BIN)/python fuzz/fuzz.py --list); do echo "== $$target"; \
		$(BIN)/python fuzz/fuzz.py $$target --seconds $(SECONDS) || exit 1; done

architectures: $(VENV)/dev.stamp ## make the table of torchvision's and timm's networks anew
	$(BIN)/python scripts/build_architectures.py

test-frameworks: $(FRAMEWORKS)/stamp ## inspect files that some forty frameworks write
	@$(FRAMEWORKS)/bin/python tests/frameworks/corpus.py --out $(FRAMEWORKS)/files; written=$$?; \
		$(FRAMEWORKS)/bin/python -P tests/frameworks/corpus.py --torch --report $(FRAMEWORKS)/files \
		&& exit $$written

test-oldest: $(OLDEST)/dev.stamp ## test against the oldest supported torch, without torchvision
	$(OLDEST)/bin/python -m pytest -rs -W '$(OLD_WARNING)' \
		$(filter-out $(NEED_TORCHVISION),$(wildcard tests/test_*.py tests/*/))

test-models: $(VENV)/dev.stamp ## save and load all of torchvision's networks and timm's families
	TORCHKEEP_MODELS=all $(BIN)/python -m pytest tests/loading/test_round_trips.py

test-training: $(VENV)/dev.stamp ## take all networks through surgery, slimming and diagnosis
	$(BIN)/python tests/training/surgery_matrix.py
	$(BIN)/python tests/training/pruning_matrix.py
	$(BIN)/python tests/training/diagnosis/matrix.py networks

test-export: $(VENV)/dev.stamp ## write all networks as .onnx, .pt2 and TorchScript, and prove each
	TORCHKEEP_COMPILE=all $(BIN)/python -m pytest tests/exporting/targets/test_compiled.py
	$(BIN)/python tests/exporting/matrix.py --out tests-export.jsonl --page docs/exported_networks.md --jobs $(JOBS)

test-crash: $(VENV)/dev.stamp ## kill runs at every system call, cut the power, damage every byte
	TORCHKEEP_CRASH=all $(BIN)/python -m pytest -rs tests/crash

NEED_TORCHVISION := tests/training/ tests/exporting/ tests/demo/ tests/docs/ tests/__pycache__/
# torch 2.13 warns of itself when parts of it are imported; the newest does not.
OLD_WARNING := ignore:`torch.jit.script_method`:DeprecationWarning

clean: ## remove the environments and everything that was built
	rm -rf $(VENV) $(OLDEST) $(FRAMEWORKS) $(OUT) fuzz/corpus site dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --- Environments: a stamp file says that an environment fits pyproject.toml -----------------

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing torchkeep and PyTorch into $(VENV): a few minutes and 5 GB, once."
	@$(BIN)/python $(PIP) --editable '.[demo]'
	@$(TORCHVISION_WORKS)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing torchkeep, PyTorch and the tools into $(VENV): a few minutes and 5 GB, once."
	@$(BIN)/python $(PIP) --editable '.[all,dev]'
	@$(TORCHVISION_WORKS)
	@touch $(VENV)/demo.stamp $@

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	@$(BIN)/python $(PIP) --editable '.[fuzz]'
	@touch $@

$(FRAMEWORKS)/stamp: pyproject.toml tests/frameworks/requirements.txt | $(FRAMEWORKS)/bin/python
	@echo "Installing some forty frameworks into $(FRAMEWORKS): ten minutes and 10 GB, once."
	@$(FRAMEWORKS)/bin/python $(PIP) --editable '.[all]' -r tests/frameworks/requirements.txt
	@$(FRAMEWORKS)/bin/python $(PIP) --no-deps mosaicml
	@touch $@

$(OLDEST)/dev.stamp: pyproject.toml | $(OLDEST)/bin/python
	@echo "Installing torchkeep and torch $(OLDEST_TORCH) into $(OLDEST): a minute, once."
	@$(OLDEST)/bin/python $(PIP) 'torch==$(OLDEST_TORCH)' --editable '.[test]'
	@touch $@

%/bin/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer was not found. Install it, or name it: make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -m venv $* || { rm -rf $*; exit 1; }

# torch and torchvision are built for each other; a mixed pair installs well and fails at import.
define TORCHVISION_WORKS
$(BIN)/python -c 'import torchvision' || { \
	echo 'torch and torchvision do not fit each other: they come from different sources.'; \
	echo 'Install both from the same one.'; \
	exit 1; }
endef
