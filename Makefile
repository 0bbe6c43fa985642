PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/mae_cells.py
ARGS ?=
# Processes that tests run in; each takes a core and up to 3 GB.
WORKERS ?= 2
bin := $(VENV)/bin
peers := $(VENV)/peers/bin
# What tests/tiny.py changes for the sake of speed, back at XLA's own values.
as_users_have_it := --xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true \
  --xla_cpu_parallel_codegen_split_count=32

.PHONY: run test test-peers lint

# Trains, evaluates and reports; ARGS="--config.seed=1" changes the config.
run: $(VENV)/.runtime
	$(bin)/python -m bioimg_jax.main --config=$(CONFIG) $(ARGS)

test: $(VENV)/.dev
	$(bin)/python -m pytest -n $(WORKERS) --dist worksteal -m "not peers and not gpu"

# Parity with PyTorch, transformers, scib-metrics and copairs.
test-peers: $(VENV)/.peers
	XLA_FLAGS="$$XLA_FLAGS $(as_users_have_it)" \
	  $(peers)/python -m pytest -n $(WORKERS) --dist worksteal -m "peers and not gpu"

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Python compiles what it imports, a small part of what is installed; pip would compile it all.
pip_install := -m pip install --quiet --disable-pip-version-check --no-compile

define install
	@start=$$(date +%s); $(bin)/python $(pip_install) -r $(1) \
	  && touch $@ && echo "installed $(1) in $$(( $$(date +%s) - start )) s"
endef

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(call install,requirements.txt)

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(call install,requirements-dev.txt)

# In an environment of their own, which sees the packages of the other: the suite runs without the
# peers, whenever they are installed.
$(VENV)/.peers: requirements-peers.txt requirements-peers-alone.txt $(VENV)/.dev
	$(PYTHON) -m venv --without-pip $(VENV)/peers
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(bin)/python -c "$$site" > "$$($(peers)/python -c "$$site")/suite.pth"
	$(peers)/python $(pip_install) -r requirements-peers.txt
	$(peers)/python $(pip_install) --no-deps -r requirements-peers-alone.txt && touch $@
