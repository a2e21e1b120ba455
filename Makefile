SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# Everything runs in .venv, which `make setup` (a part of every other target) builds from pyproject.toml.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := outputs/demo
GROW   := outputs/grow
# A share of the tests on each core, and at the end what another core has left; each test computes on one.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
PHOTOS  ?= $(or $(KRT_VOC_SUB),$(KRT_COCO_SUB))
RESULTS := outputs/photos
# Each on features that are kept; the trainings of a backbone are for a GPU, or a night.
PHOTO_METHODS := '[ridge, census, krt, krt replay.per_class=10, masked, finetune, joint_ridge]'
PHOTO_FIRST := '{method: census, data.validation: 0.2}'
NOTEBOOKS := 01_data_splits 02_train_sessions 03_forgetting_analysis 04_attention_maps 05_gallery 06_leaderboard \
  07_grow_tags
export KRT_HOME := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup demo photos grow test test-all test-browser fuzz torture endurance stacks lint audit bench speed gpu notebooks lab clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/ready  ## build .venv (part of every other target)

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=/path/to/python")'
	@echo "setting up $(VENV): a few minutes and 6 GB, mostly PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev,photos]'
	@$(BIN)/python tools/build_inplace_abn.py
	@touch $@

# $(1): where results go; $(2): what notebooks 01, 02 and 07 are told beside it; $(3): 02; $(4): 07
define notebooks
	@mkdir -p $(1)
	@for name in $(NOTEBOOKS); do \
	  case $$name in 01*) set -- $(2);; 02*) set -- $(2) $(3);; 07*) set -- $(2) $(4);; *) set --;; esac; \
	  echo "== notebooks/$$name.ipynb"; \
	  $(BIN)/papermill notebooks/$$name.ipynb $(1)/$$name.ipynb --cwd notebooks -k python3 -p folder $(1) "$$@" \
	    --log-output --no-progress-bar 2>&1 | grep -vE '^(Input|Output|Working|Executing|Ending|Black|Unable to parse line)|^<Figure|^\[IPKernelApp|^$$' || exit 1; \
	done
	@$(BIN)/krt report $(1)/runs --csv $(1)/table.csv --html $(1)/report.html
endef

demo: setup  ## train and analyse on the embedded digits; results in outputs/demo
	$(call notebooks,$(DEMO))

photos: setup  ## the same on real photos, PHOTOS=folder (VOC, COCO, table, folders); results in outputs/photos
	@$(BIN)/python tools/photos.py '$(PHOTOS)' '$(RESULTS)'
	$(call notebooks,$(RESULTS),-p preset $(abspath $(RESULTS))/photos.yaml,-p methods $(PHOTO_METHODS),-p first $(PHOTO_FIRST))

grow: setup  ## learn eight digits, add two tags from a table of new photos, tag with them; results in outputs/grow
	$(BIN)/krt train digits_demo method=census model.freeze=first protocol.sizes='[8]' data.validation=0.2 \
	  data.classes='[eight, five, four, one, seven, six, three, two]' --folder $(GROW)/first
	@$(BIN)/python tools/new_digits.py data/new_digits
	$(BIN)/krt extend $(GROW)/first data/new_digits --folder $(GROW)/more
	$(BIN)/krt predict $(GROW)/more 'data/new_digits/test_*.png' --csv $(GROW)/tags.csv
	$(BIN)/krt export $(GROW)/more $(GROW)/model.onnx

test: setup  ## run the tests (minutes)
	$(PYTEST)

test-all: setup  ## also the slow ones
	$(PYTEST) -m ''

test-browser: $(VENV)/browser  ## run every notebook in JupyterLab and Chromium (minutes)
	$(BIN)/python -m pytest -m browser tests/browser -o addopts= --strict-markers -q -p no:cacheprovider

$(VENV)/browser: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -e '.[dev,photos,browser]'
	@$(BIN)/python tools/find_chromium.py
	@touch $@

fuzz: setup  ## nearly right files into every reader: KRT_FUZZ=100000 inputs (an hour)
	$(BIN)/python tests/fuzz.py

torture: setup  ## kill, starve and lie to runs, which must end all the same: MINUTES=30
	$(BIN)/python -m benchmarks.torture --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0)

endurance: setup  ## long and large: 200 sessions, 100,000 images, 200 runs: seconds, memory, files
	$(BIN)/python -m benchmarks.endurance

stacks: setup  ## run the tests with the oldest and the newest packages, each in an environment of its own; outputs/stacks
	$(BIN)/python tools/stacks.py

lint: setup  ## check code style, types, and that notebooks hold no output
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version" notebooks/*.ipynb

audit: setup  ## known holes of the packages, and what in the code could become one
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive krt_core
	$(BIN)/python -m pytest -q tests/test_security.py
	@$(BIN)/python tools/audit.py

bench: setup  ## a whole matrix of runs on the embedded digits, headless; results in outputs/digits
	$(BIN)/krt bench digits

speed: setup  ## time the published way and ours side by side (minutes)
	$(BIN)/python -m benchmarks.speed --quick

# Without set-up, so that it runs on a machine without network that has torch, torchvision and timm (docs/install.md).
gpu:  ## test and measure what needs a GPU, in 9 minutes; results in outputs/gpu
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --tests --seconds 480

notebooks: setup  ## strip outputs from the notebooks, ready to commit
	$(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version" notebooks/*.ipynb

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 notebooks

clean:  ## delete .venv and caches; data and outputs stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find krt_core tests -name __pycache__ -type d -prune -exec rm -rf {} +
