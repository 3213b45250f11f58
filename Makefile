# make demo   the whole job in miniature on shipped photographs, ending in a picture (minutes on two cores)
# make test   the whole test suite
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

.PHONY: demo test
demo: $(installed)
	$(run) -m engine.demo

test: $(installed)
	$(run) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

$(VENV)/installed: setup.py
	@echo "installing into $(VENV), once: about 5.5 GB with PyPI's torch"
	$(PYTHON) -m venv $(VENV)
	$(run) -m pip install --quiet -e .[test]
	touch $@
