# Needs Python 3.11 or newer and make, nothing else.
#   make demo     a silent example clip gets its sound, a name and the sounds nearest to it: see demo/
#   make test     every test
#   make lint     style, format and types
#   make format   put the code into the house's format
#   make sounds   docs/sounds again: what the README lets people hear
#   make docs     the site of the documentation: build/docs/site/index.html; a small environment of its own
#   make bench    how fast is it here? seconds of each stage, minutes in all
#   make gpu      what only a GPU can show: docs/gpu.md; five minutes. DEVICE=cpu: the same at a small size
#   make gpu-train    the bundled model trained anew on a GPU: five minutes more
#   make wheels   what a bare machine with a GPU lacks, to be taken there
#   make release-check  builds what is released, makes a sound with it, and with the oldest dependencies allowed

PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= $(VENV)-docs
OUT ?= demo
CLIP ?= examples/cat.mp4
MOVING ?= examples/clock.mp4
JOBS ?= 2
DEVICE ?= cuda

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STEM := $(basename $(notdir $(CLIP)))

.DEFAULT_GOAL := help
.PHONY: help demo sounds test lint format docs bench gpu gpu-train wheels release-check wheel-check lowest-check clean

help:
	@sed -n '2,13s/^#   //p' Makefile

demo: $(VENV)/installed
	$(BIN)/vab generate "$(CLIP)" $(MOVING) -o "$(OUT)"
	$(BIN)/vab classify "$(OUT)/$(STEM).mp4" --by video
	@rm -rf "$(OUT)/vab-demo-library"
	$(BIN)/vab library add "$(OUT)/vab-demo-library" examples/sounds
	$(BIN)/vab search "$(OUT)/vab-demo-library" --video "$(CLIP)" -k 5
	@$(BIN)/python -c "from vab.media.loudness import measure; from vab.media.reader import read_audio; \
		level = measure(read_audio('$(OUT)/$(STEM).wav'), 16000); \
		print(f'its level:        {level.loudness:.1f} LUFS, true peak {level.true_peak:.1f} dBTP')"
	@echo "sound:            $(abspath $(OUT))/$(STEM).wav"
	@echo "video with sound: $(abspath $(OUT))/$(STEM).mp4"
	@echo "and in time:      $(abspath $(OUT))/$(notdir $(MOVING))"

# The bundled model's own results for the clips that may ship, with the default settings.
sounds: $(VENV)/installed
	$(BIN)/vab generate examples/cat.mp4 examples/clock.mp4 -o docs/sounds
	rm docs/sounds/*.wav

# One thread per process: the tests run in JOBS processes. A test that hangs fails after 240 s (pyproject.toml).
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15 $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strict: a warning, such as a link that leads nowhere, is an error. PyTorch is not needed.
docs: $(DOCS_VENV)/installed
	PYTHONPATH=src $(DOCS_VENV)/bin/python .ci/docs.py build/docs/pages
	PYTHONPATH=src NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@echo "the site: $(CURDIR)/build/docs/site/index.html"

$(DOCS_VENV)/installed: .ci/docs.txt
	$(PYTHON) -m venv "$(DOCS_VENV)"
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement .ci/docs.txt
	@touch $@

# Writes benchmarks/speed_<hardware>_<month>.md and .json; give it the machine for itself, for some minutes.
bench: $(VENV)/installed
	$(BIN)/vab bench -o benchmarks $(ARGS)

# On a GPU nothing is installed: the machine's own PyTorch, and the wheels that were taken along, in build/site.
# Without one, the virtual environment, the small size, and a page that is not kept.
ifeq ($(DEVICE),cpu)
PAGES ?= build/gpu
GPU := OMP_NUM_THREADS=1 $(BIN)/python -m vab.bench.gpu
GPU_SIZE := --small
GPU_NEEDS := $(VENV)/installed-dev
else
PAGES ?= benchmarks
GPU := PYTHONPATH="$(CURDIR)/src:$(CURDIR)/build/site:$(PYTHONPATH)" $(PYTHON) -m vab.bench.gpu
GPU_NEEDS := build/site
endif

gpu: $(GPU_NEEDS)
	$(GPU) gpu --device $(DEVICE) --pages "$(PAGES)" $(GPU_SIZE)

gpu-train: $(GPU_NEEDS)
	$(GPU) train --device $(DEVICE) --pages "$(PAGES)" $(GPU_SIZE)

build/site: $(wildcard build/wheels/*.whl)
	@mkdir -p $@
	$(if $^,$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $@ $^)
	@touch $@

# For Python 3.12 on Linux; docs/gpu.md says what is expected to be there. PyTorch is never among them.
WHEELS := lightning-fabric soundfile cffi pycparser
wheels: $(BIN)/python
	@mkdir -p build/wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux2014_x86_64 --dest build/wheels $(WHEELS)
	@ls -l build/wheels

release-check: wheel-check lowest-check

wheel-check: $(VENV)/installed-dev
	.ci/wheel-check $(BIN)/python

# Needs no environment, makes one of 8 GB and removes it.
lowest-check:
	.ci/lowest-check $(PYTHON)

clean:
	rm -rf .venv .venv-docs build/docs demo .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv "$(VENV)"

# Installed anew whenever pyproject.toml changes.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "installing vab into $(VENV): about 6 GB with PyTorch, once"
	$(PIP) --editable '.[search]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing vab and its tools into $(VENV): about 6 GB with PyTorch, once"
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@
