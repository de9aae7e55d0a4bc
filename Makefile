# Two commands make everything: `make demo` and `make test`. Both make their environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv where it is installed, pip else; uv reads none of pip's settings.
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),$(UV) pip,$(BIN)/python -m pip --disable-pip-version-check) -q
FIND_LINKS := $(if $(UV),$(addprefix --find-links=,$(PIP_FIND_LINKS)))
# Another build of torch than the index's own: make TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH_INDEX ?=
# More options of the demo: make demo DEMO="--scenes 1000 --mlflow-port 5051"
DEMO ?=
export NO_ALBUMENTATIONS_UPDATE := 1
# Stages and tests start many processes, and each would compile every module of ours anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest test-slow lint format docs clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

demo: $(STAMP)  ## data -> train -> evaluate on a local Ray cluster, with a report
	$(BIN)/python -m pipelines.demo up $(DEMO)

test: lint  ## linter, types and the tests of every day
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(STAMP)  ## the tests that take minutes each: clusters and machines die, a study runs
	$(BIN)/python -m pytest -m slow

# In an environment of its own: the packages of `make`, then the library's oldest over them.
test-oldest:  ## the tests of the library with the oldest versions that it takes
	$(MAKE) VENV=.venv-oldest .venv-oldest/.installed
	.venv-oldest/bin/python -m pip --disable-pip-version-check -q install --no-deps -r locks/oldest.txt
	.venv-oldest/bin/python -m pytest tests/test_golden.py tests/test_captions.py tests/test_tokenizer.py \
		tests/test_losses.py tests/test_superpixels.py tests/test_preprocessing.py tests/test_checkpoint.py \
		tests/metrics/test_retrieval.py tests/scaling_law/test_fit.py tests/test_config.py tests/test_model.py

lint: $(STAMP)  ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite files as the formatter wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:  ## stop what the demo started and remove what it wrote, the environment included
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m pipelines.demo clean; fi
	rm -rf $(VENV) .venv-oldest build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first, with the torchvision of its build, so that no other package's range picks another, and
# by version alone: the build for a machine may be another index's. All others by their hashes. Last
# the contrib build of OpenCV: img2dataset installs the plain one into the same folder.
$(STAMP): pyproject.toml constraints.txt locks/make.txt
	test -x $(BIN)/python || $(if $(UV),$(UV) venv -q --seed --python $(PYTHON),$(PYTHON) -m venv) $(VENV)
	$(PIP) install -c constraints.txt $(FIND_LINKS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	$(PIP) install --no-deps --require-hashes $(FIND_LINKS) -r locks/make.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	sed -n '/^opencv-contrib/,/[^\\]$$/p' locks/make.txt >$(VENV)/opencv.txt
	$(PIP) install --no-deps --require-hashes --force-reinstall -r $(VENV)/opencv.txt
	touch $@
