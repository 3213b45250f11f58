# make demo   the whole job in miniature on the sample photographs, ending in a picture (minutes on two cores)
# make test   the whole test suite (four to five minutes on two cores)
# make quick  the tests without those marked slow
# make lint   ruff, codespell and mypy
# make page   a page in the browser that deblurs photographs (needs Node.js)
#
# PYTHON=python3.12   makes the virtual environment with another interpreter
# VENV=               uses the interpreter as it is, packages included
PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
run := $(PYTHON)
installed :=
else
run := $(VENV)/bin/python
installed := $(VENV)/installed
endif

.PHONY: demo test quick lint page
demo: $(installed)
	$(run) -m engine.demo

test: $(installed)
	$(run) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

quick: $(installed)
	$(run) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(installed)
	$(run) -m ruff check
	$(run) -m ruff format --check
	$(run) -m codespell_lib
	$(run) -m mypy

page: $(installed)
	$(run) -m web.serve

$(VENV)/installed: setup.py constraints.txt
	@echo "installing into $(VENV), once: about 5.5 GB with PyPI's torch"
	$(PYTHON) -m venv $(VENV)
	$(run) -m pip install --quiet -c constraints.txt -e .[dev]
	touch $@
