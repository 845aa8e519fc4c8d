# make demo: install, run LEWEL_M and MoCo v2 on the generated shapes suite, print their tables
# make test: install, lint, run the tests in two processes, except those that need SLURM
# make golden: regenerate the tables that tests/results compares with; then review the difference
# make crash-sweep: kill runs and fill their disks at 100 file changes (takes minutes)
# make test-slurm: run the tests on a private SLURM (Debian: slurmctld slurmd slurm-client munge)
PYTHON ?= python3
VENV ?= .venv
BENCH = $(VENV)/bin/lewel-bench
SUITE = --suite shapes
SHELL = /bin/bash

.PHONY: demo test golden crash-sweep test-slurm lint install clean

demo: $(VENV)/.installed
	$(BENCH) run $(SUITE) --method lewel_m,moco_v2 --epochs 200 --evals linear,semi --jobs 2
	$(BENCH) table 1 $(SUITE)
	$(BENCH) table 2 $(SUITE)

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

golden: $(VENV)/.installed-dev
	LEWEL_BENCH_REGOLD=1 $(VENV)/bin/python -m pytest -q tests/results/test_render.py -k golden

crash-sweep: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/crash_sweep.py

test-slurm: $(VENV)/.installed-dev
	@command -v sbatch >/dev/null || { echo "sbatch is missing: apt-get install \
	--no-install-recommends slurmctld slurmd slurm-client munge" >&2; exit 2; }
	OMP_NUM_THREADS=1 LEWEL_BENCH_SLURM=1 $(VENV)/bin/python -m pytest -q -n 3 tests/slurm

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev,seg]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
