PYTHON ?= python3
PY := .venv/bin/python
SIZE := nano
TABLES := $(basename $(notdir $(wildcard conf/table/*.yaml)))
.DEFAULT_GOAL := help
.PHONY: help .venv demo tables $(TABLES) figures nano chat serve test bench lint format

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z0-9_-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: .venv/.installed ## install into .venv; PYTHON=python3.12 chooses the interpreter

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Sparkles needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make .venv PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv || true
	.venv/bin/uv pip install --python $(PY) --compile-bytecode -e '.[dev]' || $(PY) -m pip install -e '.[dev]'
	@touch $@

demo: .venv ## fine-tune and measure the nano model, its baseline and a control; print the table
	$(PY) train.py -m experiment=sparkleschat,minigpt4,blanked run_dir=runs/demo 'hydra.sweep.subdir=$${hydra:runtime.choices.experiment}'
	$(PY) -m sparkles.eval.table $(addprefix runs/demo/,minigpt4 sparkleschat blanked) --paper experiments/demo/paper.csv

tables: ## all tables; make table4 (or another of conf/table/) runs one: SIZE=7b DRY_RUN=1 ARGS='num=600'
	@$(MAKE) --keep-going $(TABLES)

# `make --dry-run` runs the line as well (+), and the command then prints its plan.
$(TABLES): .venv
	+@$(PY) -m sparkles.tables table=$@ size=$(SIZE) $(if $(or $(DRY_RUN),$(findstring n,$(firstword -$(MAKEFLAGS)))),--dry-run) $(ARGS)

SETS := data/scenes/SparklesDialogue
figures: .venv ## draw the statistics of the miniature's two data sets into docs/figures
	$(PY) -c 'from sparkles.nano.dataset import ensure; ensure("data/scenes")'
	$(PY) -m sparkles.gen stats path=$(SETS)CC/annotations/SparklesDialogueCC.json \
		other=$(SETS)VG/annotations/SparklesDialogueVG.json out=docs/figures formats=png page=false verbs=rules

nano: .venv ## make the shipped nano weights again, from nothing
	$(PY) -m sparkles.nano

chat: .venv ## a web page to talk to the nano model about pictures
	$(PY) -m sparkles.serve chat

serve: .venv ## an OpenAI-compatible endpoint on this machine, with the nano model
	$(PY) -m sparkles.serve api

test: .venv ## run the tests; offline, without a GPU or a key
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2

bench: .venv ## measure speed, on a machine that does nothing else, into benchmarks/RESULTS.md; ARGS='script=floor'
	$(PY) benchmarks/_results.py $(ARGS)

lint: .venv ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv ## rewrite the code as `make lint` wants it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
