# wmrl: `make` alone prints what there is. GNU make >= 3.81, a POSIX shell and Python 3.11 to 3.13 are all it needs.
# The rules name complete artifacts only (a stage in progress keeps its state in a .part.h5), so an interrupted
# `make NAME` continues where it was, and pipelines that name one dataset share it.

SHELL := /bin/sh
.SUFFIXES:
.DEFAULT_GOAL := help

BUILTIN := help venv test test-slow lint bench clean
.PHONY: $(BUILTIN)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
NO_PYTHON := wmrl needs Python 3.11, 3.12 or 3.13, and none was found; name one: make PYTHON=/path/to/python3.12

VENV := .venv/.stamp
BIN := .venv/bin
WMRL := $(BIN)/wmrl

help: ## print this
	@echo "Targets (each makes .venv from pyproject.toml when it is missing or stale):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-20s %s\n", $$1, $$2 }'
	@echo
	@echo "Pipelines (data, V, M, C, scores and a video; whatever is complete is not made again):"
	@awk 'FNR == 1 { n = FILENAME; sub(/^.*\//, "", n); sub(/\.toml$$/, "", n); sub(/^# */, ""); \
	  printf "  make %-20s %s\n", n, $$0 }' $(sort $(wildcard pipelines/*.toml)) /dev/null
	@echo
	@echo "  make NAME SEED=3 | SEEDS=1-5 | ENV=module:Id-v0     into runs/NAME/[ENV/]seed-S; the data lie in datasets/"
	@echo "  make -n NAME                                        only print the commands"

venv: $(VENV) ## make .venv and install wmrl into it

$(VENV): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "$(NO_PYTHON)" >&2; exit 2; }
	$(PYTHON) -m venv .venv || $(PYTHON) -m venv --without-pip .venv
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install pip
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

test: $(VENV) ## run the tests (at most 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV) ## run the slow tests too: many kills, whole pipelines
	$(BIN)/python -m pytest -m "slow"

lint: $(VENV) ## check style and types: ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy wmrl

bench: $(VENV) ## measure the speed of every stage on this machine
	$(BIN)/python tests/bench/bench.py

clean: ## remove build leftovers and caches; datasets/, runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find wmrl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Experiments. wmrl/pipelines_rules.py reads pipelines/*.toml with the system's python3 (so `make -n NAME` works in a
# fresh clone) and prints one word for each dataset, run and goal; the templates below turn them into rules.
#
# A pipeline file is a prerequisite, and so are models: after an edit the stage is asked, and the stage decides by
# content whether there is something to do. If there is not, it leaves its artifact alone, and the `touch` behind it
# tells make so. A dataset has to be there, but its time does not count: it only grows (for another pipeline, say), and
# what was learnt from fewer episodes stays what it is. `wmrl status` tells.

ifneq ($(filter-out $(BUILTIN),$(MAKECMDGOALS)),)

ifeq ($(PYTHON),)
$(error $(NO_PYTHON))
endif

unexport ENV
ASKED_ENV := $(if $(filter command%,$(origin ENV)),$(ENV))
WORDS := $(shell $(PYTHON) wmrl/pipelines_rules.py --builtin '$(BUILTIN)' --goals '$(MAKECMDGOALS)' \
  --seeds '$(or $(SEEDS),$(SEED))' --env '$(ASKED_ENV)')
ifneq ($(lastword $(WORDS)),ok)
$(error the pipelines could not be read (the line above says why))
endif

field = $(patsubst -,,$(word $(2),$(subst |, ,$(1))))
of_kind = $(filter $(1)|%,$(WORDS))

# data|FOLDER|PIPELINE|ENV
define DATA_RULE
$(call field,$(1),2)/complete.h5: pipelines/$(call field,$(1),3).toml | $(VENV)
	$(WMRL) generate $$< $(if $(call field,$(1),4),--env-id $(call field,$(1),4) )--data $$(@D)
	@touch -c $$@ || true
.PRECIOUS: $(call field,$(1),2)/complete.h5
endef

# run|LOGDIR|PIPELINE|SEED|DATA|ENV|V|M: SEED and ENV are - where they are the file's own, V and M where the run's
logdir = $(call field,$(1),2)
toml = pipelines/$(call field,$(1),3).toml
complete = $(call field,$(1),5)/complete.h5
other_env = $(if $(call field,$(1),6), --env-id $(call field,$(1),6) --data $(call field,$(1),5))
stage = $(WMRL) $(2) $(toml) --logdir $(logdir)$(other_env)$(patsubst %, --seed %,$(call field,$(1),4))
define RUN_RULES
$(logdir)/vae.h5: $(toml) $(call field,$(1),7) | $(complete) $(VENV)
	$(call stage,$(1),train-vae)
	@touch -c $$@ || true
$(logdir)/dynamics.h5: $(toml) $(logdir)/vae.h5 $(call field,$(1),8) | $(complete) $(VENV)
	$(call stage,$(1),train-dynamics)
	@touch -c $$@ || true
$(logdir)/controller.h5: $(toml) $(logdir)/vae.h5 $(logdir)/dynamics.h5 | $(VENV)
	$(call stage,$(1),train-controller)
	@touch -c $$@ || true
$(logdir)/test.h5: $(toml) $(logdir)/controller.h5 | $(VENV)
	$(call stage,$(1),test-controller)
	@touch -c $$@ || true
$(logdir)/videos/episode.mp4: $(logdir)/test.h5 | $(VENV)
	$(call stage,$(1),render) --out $$@
	@touch -c $$@ || true
.PRECIOUS: $(foreach n,vae.h5 dynamics.h5 controller.h5 test.h5 videos/episode.mp4,$(logdir)/$(n))
endef

# iterate|... and online|...: the same fields; one command makes all of it, and iterate.h5 is there when all iterations
# are. Online, no dataset has to be there before.
define ITERATE_RULES
$(logdir)/iterate.h5: $(toml) $(call field,$(1),7) | $(if $(filter iterate|%,$(1)),$(complete)) $(VENV)
	$(call stage,$(1),iterate)
	@touch -c $$@ || true
$(logdir)/videos/episode.mp4: $(logdir)/iterate.h5 | $(VENV)
	$(call stage,$(1),render) --out $$@
	@touch -c $$@ || true
.PRECIOUS: $(foreach n,iterate.h5 videos/episode.mp4,$(logdir)/$(n))
endef

# goal|PIPELINE|LOGDIR
define GOAL_RULE
.PHONY: $(call field,$(1),2)
$(call field,$(1),2): $(call field,$(1),3)/videos/episode.mp4
endef

$(foreach w,$(call of_kind,data),$(eval $(call DATA_RULE,$(w))))
$(foreach w,$(call of_kind,run),$(eval $(call RUN_RULES,$(w))))
$(foreach w,$(call of_kind,iterate) $(call of_kind,online),$(eval $(call ITERATE_RULES,$(w))))
$(foreach w,$(call of_kind,goal),$(eval $(call GOAL_RULE,$(w))))

endif
