# make demo, make test: the environment is made on first use. make test-slow: tests of more than ten seconds.
# make check: format, lint, types. make bench: measurements; LLAMAGEN=<a copy of its repository>, and IAR=<of its>, to
# measure beside them.
# Where $(PYTHON) can already import torch, its environment is used as it is; otherwise .venv is made.
# CPU-only torch, gigabytes smaller: make demo TORCH_INDEX_URL=<the CPU index from PyTorch's install page>

PYTHON ?= python3
HAS_TORCH := $(shell $(PYTHON) -c "import torch" 2>/dev/null && echo yes)
ENV := $(if $(HAS_TORCH),,.venv)
RUN := $(if $(ENV),$(ENV)/bin/python,$(PYTHON))
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PYTEST := $(RUN) -m pytest -q -n auto --maxprocesses 8
PINS := $(if $(ENV),--constraint constraints.txt,)

.PHONY: demo test test-slow check bench lock clean
demo: .installed-core
	$(RUN) -m codeprior demo

test: .installed-test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: .installed-test
	$(PYTEST) -m slow $(PYTEST_ARGS)

check: .installed-lint
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: .installed-bench
	$(RUN) benchmarks/bench_linkage.py $(BENCH_ARGS)
	$(RUN) benchmarks/bench_balanced_kmeans.py $(if $(IAR),--original $(IAR))
	$(RUN) benchmarks/bench_encoding.py $(if $(LLAMAGEN),--original $(LLAMAGEN))
	$(RUN) benchmarks/bench_losses.py
	$(if $(LLAMAGEN)$(IAR),$(RUN) benchmarks/bench_training.py $(if $(LLAMAGEN),--llamagen $(LLAMAGEN)) $(if $(IAR),--iar $(IAR)))
	$(RUN) benchmarks/bench_sampling.py $(if $(LLAMAGEN),--original $(LLAMAGEN))
	$(RUN) benchmarks/bench_evaluation.py
	$(RUN) benchmarks/table.py
	$(RUN) benchmarks/table_docs.py

# Torch first and alone: a looser requirement would pull gigabytes of CUDA packages onto a machine that has a CPU wheel.
.installed-core: pyproject.toml constraints.txt
ifneq ($(ENV),)
	test -x $(ENV)/bin/python || $(PYTHON) -m venv $(ENV)
	$(PIP) $(PINS) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL),) torch
endif
	$(PIP) $(PINS) --editable .
	@touch $@

.installed-test .installed-lint .installed-bench: .installed-%: .installed-core
	$(PIP) $(PINS) --editable '.[$*]'
	@touch $@

# A fresh environment, frozen: without torch's local tag (+cpu), which matches nothing elsewhere.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	.venv-lock/bin/python -m pip install --quiet --editable '.[data,track,test,lint,bench]'
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv .installed-* build *.egg-info
