# make demo: from a fresh clone to a trained model, samples, likelihoods and a report.   make test: the tests.   make notebooks: runs them all.
# make docs: the pages of docs/ as a site, into site/.
# Each creates the environment .venv first if there is none. Nothing but make and Python 3.11 or newer is needed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
RUN ?= runs/digits
BIN := .venv/bin

.PHONY: demo test notebooks docs lint clean

demo: .venv/done
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(RUN)
	for sampler in em pc ode; do $(BIN)/python sample.py --workdir=$(RUN) --sampler=$$sampler --n=64 || exit; done
	$(BIN)/python evaluate.py --workdir=$(RUN) --n=256 --seeds=1 --likelihood_n=128

test: .venv/done
	$(BIN)/python -m pytest -n 2 --dist=loadfile

notebooks: .venv/done
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	for notebook in notebooks/*.ipynb; do $(BIN)/jupyter execute $$notebook || exit; done

docs: .venv/done
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/done: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make needs Python 3.11 or newer with venv: install it, or name it with make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
