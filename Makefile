# make demo    from nothing to a distilled student in ONNX          make test    lint and the whole suite
# make venv    build .venv only     make lint    ruff     make clean    remove caches and builds
# make versions    the end-to-end tests with the oldest and with the newest versions that pyproject.toml allows
#
# PYTHON=python3.12   the interpreter that .venv is made from    PIP_ARGS="..."      further arguments of pip install
# WORKERS=4           test processes                             PYTEST_ARGS="..."   further arguments of pytest

VENV ?= .venv
WORKERS ?= 2
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
    if "$$p" -c '$(RECENT)' 2>/dev/null; then echo "$$p"; exit; fi; done; echo python3)
endif

VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
INSTALL := $(VENV_PYTHON) -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
COMPLETE := $(VENV_PYTHON) -c 'import cv2, jinja2, onnx, onnxruntime, pandas, pytest, pywt, selenium, shapely, torch, torchvision, ultralytics'

.PHONY: help demo test lint clean venv versions FORCE
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)
	$(VENV_PYTHON) -u train.py

# One thread a worker: more only makes the workers wait for one another. Whole files, so that what a file prepares is
# prepared once, in their order, so that no long one begins at the end.
test: lint
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

venv: $(STAMP)

versions: versions-oldest versions-newest

versions-%: FORCE
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) $(patsubst %,-c %,$(wildcard constraints/$*.txt)) -e '.[dev]'
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/end_to_end tests/detectors

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamp says that everything was installed. Without it the environment is new, half made or older than
# pyproject.toml: a working one is completed, any other is made again. A stamped one whose interpreter is gone
# (a moved checkout, an upgraded system) counts as having none.
ifeq ($(shell test -e $(STAMP) && ! $(VENV_PYTHON) -c '' 2>/dev/null && echo dead),dead)
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml
	@$(PYTHON) -c '$(RECENT)' 2>/dev/null || { echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo 'not there'); name another: make PYTHON=python3.12 venv" >&2; exit 1; }
	@rm -f $(STAMP)
	@if ! $(VENV_PYTHON) -c '$(RECENT)' 2>/dev/null || ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory $(VENV)/new; fi
	$(INSTALL)
	@$(COMPLETE) || { echo "make: $(VENV) is damaged, making it again" >&2; \
	    $(MAKE) --no-print-directory $(VENV)/new && $(INSTALL) && $(COMPLETE); }
	@touch $(STAMP)

.PHONY: $(VENV)/new
$(VENV)/new:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: '$(PYTHON) -m venv' failed; Debian and Ubuntu keep" \
	    "it in a package of its own: apt install python3-venv" >&2; exit 1; }
