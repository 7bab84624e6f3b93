PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
USER_STAMP := $(VENV)/.installed
DEV_STAMP  := $(VENV)/.installed-dev
# one thread a process: two two-threaded torch processes on two cores run ten times slower
QUIET  := OMP_NUM_THREADS=1 MPLBACKEND=agg

.PHONY: help ours install toy lab test check lowest soak mutation export nbs readme reference docs \
	playground pages clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 10

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: call make PYTHON=python3.11, say."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python's venv is missing: apt-get install python3-venv, then call make again."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# an environment runs the package of one clone: to install another's there would move it unseen
WHOSE := import importlib.util, os; found = importlib.util.find_spec("consistency_edu"); \
	print(os.path.realpath(found.origin) if found else "")
ours: | $(VENV)/bin/python
	@whose=$$($(BIN)/python -I -c '$(WHOSE)') || exit 2; \
		case "$$whose" in ""|"$(realpath .)"/*) ;; *) \
		echo "$(VENV) runs $$whose, of another clone: give this one its own (make without VENV)."; \
		exit 2;; esac

$(USER_STAMP): settings.ini setup.py pyproject.toml | $(VENV)/bin/python ours
	@echo "Installing into $(VENV): about 2 minutes, 6 GB (PyTorch is nearly all of it)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV_STAMP): settings.ini setup.py pyproject.toml | $(VENV)/bin/python ours
	@echo "Installing into $(VENV), with the course's tools: about 2 minutes, 6 GB."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(USER_STAMP)

install: $(DEV_STAMP)  ## make .venv with the package and the course's tools

toy: $(USER_STAMP)  ## train on two moons and draw it (2 minutes; ARGS="--methods all" for more)
	$(BIN)/consistency-edu toy $(ARGS)

lab: $(DEV_STAMP)  ## open the course in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

test: $(DEV_STAMP) check pages  ## everything CI checks: export, notebooks, site, tests (long)
	$(QUIET) $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	$(QUIET) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests -m slow

check: $(DEV_STAMP)  ## the quick part of the tests, on 2 processes
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(QUIET) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests -m "not slow"

lowest:  ## make check with the lowest versions admitted: make lowest PYTHON=python3.10
	PIP_CONSTRAINT=$(CURDIR)/tools/lowest.txt $(MAKE) check VENV=build/lowest

soak: $(DEV_STAMP)  ## kill a run 30 times, and see that it ends where an undisturbed one does
	$(QUIET) SOAK_KILLS=30 $(BIN)/python -m pytest -q -s -W ignore tests/test_faults.py -m slow

mutation: $(DEV_STAMP)  ## break each line that matters, and see that a test notices
	$(BIN)/python tests/mutation.py

export: $(DEV_STAMP)  ## write the package from the notebooks
	$(BIN)/ruff check --quiet --fix nbs tests tools
	$(BIN)/ruff format --quiet nbs tests tools
	$(BIN)/nbdev_export
	$(BIN)/python tools/run_notebooks.py --fold >/dev/null
	$(BIN)/nbdev_clean

nbs: $(DEV_STAMP)  ## run every notebook and store its outputs
	$(QUIET) $(BIN)/python tools/run_notebooks.py

readme: $(DEV_STAMP)  ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

reference: $(DEV_STAMP)  ## run the toy again for the README's table and pictures (10 minutes)
	for seed in 0 1 2; do \
		$(BIN)/consistency-edu toy --seed $$seed --methods all --out build/reference || exit 1; \
	done
	cp build/reference/results/toy_moons_seed?.json results/reference/
	cp build/reference/images/toy_moons_seed0.png images/toy_moons.png
	cp build/reference/images/toy_moons_seed0.gif images/toy_moons.gif
	$(BIN)/python tools/run_notebooks.py --shrink images/toy_moons.png

# a download that hangs is given up after a minute, and tried twice more
NPM := npm install --silent --no-audit --no-fund --fetch-timeout=60000 --fetch-retries=2 --prefix build/npm

# offline mathematics for the site; without npm the pages load it from the network instead
docs/_static/tex-svg.js:
	@mkdir -p build/npm docs/_static
	-$(NPM) mathjax@3.2.2 && \
		cp build/npm/node_modules/mathjax/es5/tex-svg.js $@

# what runs the image students in the browser; without npm the playground has the plane alone
ORT := build/npm/node_modules/onnxruntime-web/package.json
$(ORT):
	@mkdir -p build/npm
	-$(NPM) --ignore-scripts \
		onnxruntime-web@1.30.0

playground: $(DEV_STAMP) $(ORT)  ## build the playground into the site: models from what ships
	$(QUIET) $(BIN)/python tools/playground.py build _build/html/playground

docs: $(DEV_STAMP) docs/_static/tex-svg.js  ## build the course site into _build/html, and check its links
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs nbs _build/html
	@$(MAKE) playground
	$(BIN)/python tools/check_site.py _build/html \
		$(if $(wildcard docs/_static/tex-svg.js),,--online-math)

AXE := build/npm/node_modules/axe-core/axe.min.js
$(AXE):
	@mkdir -p build/npm
	-$(NPM) axe-core@4.14.1

pages: docs $(AXE)  ## look at each page of the site in Chromium, if there is one (5 minutes)
	$(BIN)/python tools/check_pages.py _build/html --axe $(AXE)

clean:  ## remove .venv and everything built
	rm -rf $(VENV) _build build *.egg-info
