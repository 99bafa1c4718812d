# make demo: from a fresh clone to a trained model, samples, likelihoods and a report.   make test: the tests.   make notebooks: runs them all.
# make docs: the pages of docs/ as a site, into site/.
# Each creates the environment .venv first if there is none. Nothing but make and Python 3.11 or newer is needed.
# make test PYTHON=python3.13 asks for that Python: where .venv has another version, the environment is .venv-3.13.

# The version, 3.13, of a Python that can make the environment; of any other, nothing.
version = $(shell $(1) -c 'import sys, venv, ensurepip; sys.version_info < (3, 11) or print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(if $(call version,$(p)),$(p))))
VENV := .venv
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
  ASKED := $(call version,$(PYTHON))
  ifeq ($(ASKED),)
    $(error PYTHON=$(PYTHON) is no Python 3.11 or newer with venv: make PYTHON=/path/to/python3 names one)
  endif
  ifneq ($(filter-out $(ASKED),$(call version,.venv/bin/python)),)
    VENV := .venv-$(ASKED)
  endif
endif
RUN ?= runs/digits
BIN := $(VENV)/bin

.PHONY: demo test notebooks docs lint clean

demo: $(VENV)/done
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(RUN)
	for sampler in em pc ode; do $(BIN)/python sample.py --workdir=$(RUN) --sampler=$$sampler --n=64 || exit; done
	$(BIN)/python evaluate.py --workdir=$(RUN) --n=256 --seeds=1 --likelihood_n=128

test: $(VENV)/done
	$(BIN)/python -m pytest -n 2 --dist=loadfile

notebooks: $(VENV)/done
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	for notebook in notebooks/*.ipynb; do $(BIN)/jupyter execute $$notebook || exit; done

docs: $(VENV)/done
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-*

$(VENV)/done: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make needs Python 3.11 or newer with venv: install it, or name it with make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
