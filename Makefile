# Each target installs what it needs into .venv by itself. uv is used when it is there; pip does as well.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
    CREATE_VENV := $(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
    INSTALL := $(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt
else
    CREATE_VENV := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")' && $(PYTHON) -m venv .venv
    INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
endif

# The editable install links each module by itself, so that type checkers see it too: the stamp's name changes with
# the set of modules, the requirements and the pins.
MODULES := $(shell find ckpt_lib src tasks flows -name '*.py' | LC_ALL=C sort)
STAMP := .venv/.installed-$(shell (echo $(MODULES); cat pyproject.toml constraints.txt) | cksum | cut -d ' ' -f 1)

# What the tests in tests/peers need lies in an environment of its own, on top of the project's: it takes 300 MB.
PEERS := .venv/peers/bin
PEERS_STAMP := .venv/.peers-$(shell cat tests/peers/requirements.txt constraints.txt | cksum | cut -d ' ' -f 1)

# The generator of API clients needs other versions than the project, and has an environment of its own.
CLIENTS := .venv/clients/bin
CLIENTS_STAMP := .venv/.clients-$(shell cksum < tests/web/generator.txt | cut -d ' ' -f 1)

.PHONY: install demo test test-servers test-peers test-clients test-browser chromium torture mutants check serve bench format clean

install: $(STAMP)

$(STAMP):
	@echo "Installing into .venv (PyTorch first; a few minutes when nothing is cached) ..."
	@test -x $(BIN)/python || $(CREATE_VENV)
	@$(INSTALL) torch
	@$(INSTALL) --config-settings editable_mode=strict --editable '.[dev]'
	@rm -f .venv/.installed-* && touch $@

demo: $(STAMP)
	@$(BIN)/python -m deployments.server $(BIN)/python -m examples.demo

serve: $(STAMP)
	@$(BIN)/python -m deployments.server $(BIN)/python -m deployments.serve

# Everything but what the targets below run; the only server is Prefect's own test server. Each of the two workers
# has a core, on which more threads of PyTorch would wait for each other: a small model trains five times slower then.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not servers and not peers and not clients and not browser"

# What starts Prefect servers of this project and serves deployments.
test-servers: $(STAMP)
	@$(BIN)/python -m pytest -m servers

$(PEERS_STAMP): $(STAMP)
	@echo "Installing the libraries of tests/peers/requirements.txt into .venv/peers ..."
	@test -x $(PEERS)/python || $(BIN)/python -m venv .venv/peers
	@$(PEERS)/python -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "project.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})")' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement tests/peers/requirements.txt
	@rm -f .venv/.peers-* && touch $@

# What reads and writes checkpoints with the libraries that others train with: Lightning, Transformers, Accelerate.
test-peers: $(PEERS_STAMP)
	@OMP_NUM_THREADS=1 $(PEERS)/python -m pytest -m peers tests/peers

$(CLIENTS_STAMP): $(STAMP)
	@echo "Installing the generator of tests/web/generator.txt into .venv/clients ..."
	@test -x $(CLIENTS)/python || $(BIN)/python -m venv .venv/clients
	@$(CLIENTS)/python -m pip install --quiet --disable-pip-version-check --requirement tests/web/generator.txt
	@rm -f .venv/.clients-* && touch $@

# What uses the REST API by a client that is generated from its description.
test-clients: $(CLIENTS_STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clients tests/web

# What people see of the page, in a real Chromium: that of CHROMIUM, one that is installed, or Debian's by apt.
test-browser: $(STAMP) chromium
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

chromium: $(STAMP)
	@$(BIN)/python -m tests.browser.chromium

# The fault matrix at full numbers, in less than an hour; its results go into docs/DURABILITY.md.
torture: $(STAMP)
	@$(BIN)/python -m tests.torture

# Without any one of its safeguards a test fails: each is taken out of a copy; the list goes into docs/MUTANTS.md.
mutants: $(STAMP)
	@$(BIN)/python -m tests.torture.mutants

bench: $(STAMP)
	@$(INSTALL) --config-settings editable_mode=strict --editable '.[bench]'
	@$(BIN)/python -m benchmarks

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p ckpt_lib -p prefect_checkpoints
	$(BIN)/mypy deployments docs examples benchmarks tests

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
