# The front door. Every target makes the environment first if it is missing; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
HYP ?=
SCALE ?=
TASK ?=
SEEDS ?=
ARMS ?=
JOBS ?=
STALE ?=
BUDGET ?=
LAUNCHER ?=
RUN ?=
BUNDLE ?=
ARGS ?=

# a mistyped option would otherwise run another job than the one asked for
OPTIONS := HYP SCALE TASK SEEDS ARMS JOBS STALE BUDGET LAUNCHER RUN BUNDLE ARGS PYTHON
UNKNOWN := $(filter-out $(OPTIONS),$(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $(v))),$(v))))
ifneq ($(UNKNOWN),)
# the one that begins with the same letters, if there is one
GUESS := $(filter $(shell echo $(firstword $(UNKNOWN)) | tr a-z A-Z)%,$(OPTIONS))
$(error unknown option $(UNKNOWN)$(if $(GUESS),; did you mean $(firstword $(GUESS))?). The options are $(OPTIONS); Hydra's go into ARGS="$(firstword $(UNKNOWN))=...")
endif

help:  ## Show this list
	@echo "The controlled test of MambaOut's hypotheses. Targets:"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "Options: HYP=1  SCALE=demo|pilot|paper  TASK=coco  SEEDS=5|10|20  ARMS=all  JOBS=2  STALE=reuse|rerun  BUDGET=minutes  LAUNCHER=slurm  RUN=record  BUNDLE=file  PYTHON=python3.11  ARGS='hardware=cpu paths.data=FOLDER'"

setup: .venv/ready  ## Make the environment in .venv (the other targets do it themselves)

sweep: need-hyp .venv/ready  ## HYP=1, 2, 3 or 4: train what is missing of a hypothesis, then judge it and write its report
	@$(PY) -m hypotheses.sweep $(SWEEP) $(if $(BUDGET),--budget $(BUDGET)) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(ARGS)

SWEEP = $(HYP) $(if $(SCALE),--scale $(SCALE)) $(if $(TASK),--task $(TASK)) $(if $(SEEDS),--seeds $(SEEDS)) \
	$(if $(ARMS),--arms $(ARMS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(STALE),--stale $(STALE))

plan: need-hyp no-launcher .venv/ready  ## HYP=1, 2, 3 or 4: what the sweep would do with each run and why, and what it costs
	@$(PY) -m hypotheses.plan $(SWEEP) $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)

status: need-hyp no-launcher .venv/ready  ## HYP=1, 2, 3 or 4: where each run stands; ARGS=--watch redraws it, ARGS=--json is for machines
	@$(PY) -m hypotheses.status $(SWEEP) $(ARGS)

reproduce: no-selection .venv/ready  ## RUN=demo/imagenet/mambaout_atto/seed_0: make a record again in a folder of its own, and compare
	@if [ -z "$(RUN)" ]; then echo "error: say which record: make reproduce RUN=demo/imagenet/mambaout_atto/seed_0" >&2; exit 2; fi
	@$(PY) -m hypotheses.reproduce $(RUN) $(ARGS)

verify: no-selection .venv/ready  ## Whether all results are whole: hashes, metrics and tables made anew; BUNDLE=file: of an archive
	@$(PY) -m hypotheses.verify $(BUNDLE) $(ARGS)

bundle: no-selection .venv/ready  ## Pack records, events, rules and environment into BUNDLE=outputs/bundle.tar.gz, for another machine to verify
	@$(PY) -m hypotheses.verify --bundle $(or $(BUNDLE),outputs/bundle.tar.gz) $(ARGS)

report: no-sweep-options .venv/ready  ## Judge the records that are there and write results/report/; with HYP=1, 2, 3 or 4 show that one
	@$(PY) -m hypotheses.report $(HYP) $(if $(SCALE),--scale $(SCALE)) $(ARGS)

publish: need-hyp no-sweep-options .venv/ready  ## HYP=1, 2, 3 or 4: send a finished sweep to W&B, or send it again; ARGS='--project P --entity E'
	@$(PY) -m hypotheses.publish $(HYP) $(if $(SCALE),--scale $(SCALE)) $(ARGS)

dashboard: only-args .venv/ready  ## W&B's own view of the runs here, in the terminal and without a network; says where the report's page is
	@$(PY) -m hypotheses.dashboard $(ARGS)

power: need-hyp no-sweep-options .venv/ready  ## HYP=1, 2, 3 or 4: what more seeds would decide, from the spread seen so far
	@$(PY) -m hypotheses.power $(HYP) $(if $(SCALE),--scale $(SCALE)) $(ARGS)

check: .venv/ready  ## Lint, format, types, and the links of README and docs: a minute
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/basedpyright
	@$(PY) -m pytest --noconftest --quiet -n 0 tests/test_links.py

test: check  ## make check, and the tests (the slow ones: make test-slow)
	@$(PY) -m pytest $(ARGS)

test-slow: .venv/ready  ## The tests that take longer: whole sweeps, two processes, set-up
	@$(PY) -m pytest -m slow $(ARGS)

docs: .venv/ready  ## Build the documentation: docs/_build/html/index.html
	@$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: .venv/bench  ## Measure the scan, the networks and the trainer against their peers (half an hour)
	@$(PY) benchmarks/scan.py
	@$(PY) benchmarks/scan.py --channels-first
	@$(PY) benchmarks/scan.py --channels-first --glibc
	@$(PY) benchmarks/scan.py --mode forward
	@$(PY) benchmarks/scan.py --memory
	@$(PY) benchmarks/scan.py --accuracy
	@for model in femto tiny; do for mode in training inference; do \
		$(PY) benchmarks/backbone.py --model mambaout_$$model --mode $$mode && \
		$(PY) benchmarks/backbone.py --model mambaout_$$model --mode $$mode --stack || exit 1; done; done
	@$(PY) benchmarks/backbone.py --model mambaout_atto --arms
	@$(PY) benchmarks/trainer_overhead.py
	@$(PY) benchmarks/loading.py
	@$(PY) benchmarks/length.py --json results/measured/length.json

# the peers of the benchmarks: in the lock file too, but only installed for them
.venv/bench: .venv/ready
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps $$(sed -n 's/ *# bench$$//p' requirements.lock)
	@touch $@

TASKS := imagenet recall coco ade20k
reference: .venv/ready  ## Copy the demo's records of all hypotheses to results/reference, to be committed, and write the report there
	@for runs in $(TASKS) imagenet/mambaout_atto+d24_p4_32px; do test -d results/records/demo/$$runs || \
		{ echo "error: no runs of $$runs yet: make sweep of HYP=1, 2, 3 and 4 first" >&2; exit 2; }; done
	@$(PY) -m hypotheses.report > /dev/null
	rm -rf results/.reference && mkdir -p results/.reference/records/demo results/.reference/attempts/demo
	for task in $(TASKS); do for kind in records attempts; do cp -r results/$$kind/demo/$$task results/.reference/$$kind/demo/; done; done
	cp -r results/registered results/provenance results/.reference/
	find results/.reference -name '*.jpg' ! -name 'seed_0.jpg' -delete
	find results/.reference -name '*+*' ! -name '*+d*_p*px' -prune -exec rm -rf {} + # variants with a tag, but for the doses of hypothesis 4
	mkdir -p results/.reference/measured && for kept in results/reference results; do if test -d $$kept/measured; then cp -r $$kept/measured/. results/.reference/measured/; fi; done
	rm -rf results/reference && mv results/.reference results/reference
	$(PY) -m hypotheses.report paths.results=results/reference

notebooks: no-options .venv/ready  ## Run the notebooks; they are left with their output in outputs/notebooks/
	@mkdir -p outputs/notebooks
	@# without a warning at each start about encryption, of a kernel that listens on this machine alone and asks for a key
	@.venv/bin/jupyter-execute notebooks/*.ipynb --output='../outputs/notebooks/{notebook_name}' 2> >(grep -v 'over TCP without encryption' >&2)
	@echo "with their output, for Jupyter or an editor that shows notebooks: outputs/notebooks/*.ipynb"

clean: no-options  ## Remove what the demo has made, of all hypotheses: its digits, logs, records and reports, and what W&B keeps of them
	rm -rf data/demo outputs/demo outputs/smoke results/records/demo results/records/smoke results/evaluations/demo results/evaluations/smoke results/attempts/demo results/attempts/smoke results/replaced/demo outputs/reproduced/demo results/report
	rm -rf results/wandb/{,earlier/}{,offline-}run-????????_??????-{demo-*,smoke-*,verdict-hypothesis_*_demo,verdict-hypothesis_*_smoke}

need-hyp:
	@if [ -z "$(HYP)" ]; then echo "error: say which hypothesis: make $(firstword $(MAKECMDGOALS)) HYP=1" >&2; exit 2; fi

no-launcher:
	@if [ -n "$(LAUNCHER)" ]; then echo "error: make $(firstword $(MAKECMDGOALS)) takes no LAUNCHER: it is for make sweep" >&2; exit 2; fi

no-selection: no-launcher
	@if [ -n "$(strip $(SWEEP))$(BUDGET)" ]; then echo "error: make $(firstword $(MAKECMDGOALS)) takes RUN, BUNDLE and ARGS='paths.results=FOLDER' only" >&2; exit 2; fi

only-args:
	@if [ -n "$(strip $(SWEEP))$(BUDGET)$(LAUNCHER)$(RUN)$(BUNDLE)" ]; then echo "error: make $(firstword $(MAKECMDGOALS)) takes ARGS='paths.results=FOLDER' only" >&2; exit 2; fi

no-options: no-launcher
	@if [ -n "$(strip $(SWEEP))$(BUDGET)$(RUN)$(BUNDLE)$(ARGS)" ]; then echo "error: make $(firstword $(MAKECMDGOALS)) takes no options$(if $(filter notebooks,$(MAKECMDGOALS)),: other results are read with the overrides of a notebook's first cell)" >&2; exit 2; fi

no-sweep-options: no-launcher
	@if [ -n "$(TASK)$(SEEDS)$(ARMS)$(JOBS)$(STALE)$(BUDGET)" ]; then echo "error: make $(firstword $(MAKECMDGOALS)) takes HYP, SCALE and ARGS='paths.results=FOLDER' only" >&2; exit 2; fi

# One make at a time: another one, in a second terminal, waits for it. The lock goes with the process that holds it.
.venv/ready: requirements.lock pyproject.toml
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
		echo "error: Python 3.11 is needed; say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@exec 9> .venv.lock; ! command -v flock > /dev/null || flock --nonblock 9 || \
		{ echo "another make is setting up the environment in .venv: waiting for it"; flock 9; }; \
		if ! test -e $@ -a $@ -nt requirements.lock -a $@ -nt pyproject.toml; then $(MAKE) --no-print-directory environment; fi

# The stamp is written last, so an interrupted set-up goes on where it stopped (pip keeps what it has downloaded).
environment:
	@echo "setting up the environment in .venv, once: about 7 GB, some minutes; an interrupted set-up can be started again"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@# a package whose installation was interrupted has no RECORD yet
	@find .venv/lib -maxdepth 4 -name '*.dist-info' -type d ! -exec test -e {}/RECORD \; -prune -exec rm -rf {} +
	@echo "  1/3 pip and setuptools"
	@$(PY) -m pip install --quiet --disable-pip-version-check $$(grep -E '^(pip|setuptools)==' requirements.lock)
	@echo "  2/3 the $$(grep == requirements.lock | grep -vc '# bench$$') packages of requirements.lock"
	@$(PY) -m pip install --disable-pip-version-check --no-deps -r <(grep -v '# bench$$' requirements.lock) \
		| awk '/^(Collecting|Processing|Requirement)/ {if (++n % 20 == 0) print "      " n " found"} /^Installing/ {print "      installing them, a minute or two without a word"} {fflush()}' \
		|| { echo "error: pip could not install requirements.lock (see above): check the network and the disk, then type the same command again" >&2; exit 2; }
	@echo "  3/3 the project itself"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch .venv/ready
	@echo "environment ready"

.PHONY: environment help setup sweep plan status reproduce verify bundle report publish dashboard check test test-slow docs bench reference notebooks clean need-hyp no-launcher no-options no-sweep-options no-selection only-args
