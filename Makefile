# Every target makes .venv from the pinned constraints when it is missing or stale.
LINE ?= wholebody
SOURCE ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
export OMP_WAIT_POLICY := passive
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help release test test-slow check serve platform image bench clean
.DEFAULT_GOAL := help

help: ## show this text
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo "variables: LINE=<line of params.yaml>  SOURCE=phantom|idc|dicomweb|dicom:<dir>|nifti:<dir>  EVALUATION=lidc_nodules:<dir>|none  PRIVACY=critical|reject|warning  JOBS=<stages at a time>"

# Pip's own file list tells nothing of a half-done install: the stamp is written last.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"make: Python {v[0]}.{v[1]} is not allowed: 3.11 or 3.12; set PYTHON=<interpreter>")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# Peers of the tests; what else they want (jupyter, torchvision) the tests do not.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps lighter-zoo lightly surface-distance
	@touch $@

# Handed over as they are: a folder's name may hold a space, a quote or a dollar.
release: export MAKE_SOURCE = $(value SOURCE)
release: export MAKE_EVALUATION = $(value EVALUATION)
release: $(READY) ## make a release of LINE from SOURCE: run the graph, judge the gates, build the Bento
	@$(BIN)/ctfoundry release --line $(LINE) $(if $(SOURCE),--source "$$MAKE_SOURCE") $(if $(EVALUATION),--evaluation "$$MAKE_EVALUATION") $(if $(PRIVACY),--privacy '$(PRIVACY)') $(if $(JOBS),--jobs '$(JOBS)')

test: $(READY) ## fast unit tests and integration tests with the real tools
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile tests/unit
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile tests/integration

test-slow: $(READY) ## proof that takes minutes: whole releases, killed and resumed, served and verified
	$(BIN)/python -m pytest -m slow

check: $(READY) ## style (ruff), types (mypy), layers (import-linter), parameters, pins
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/ctfoundry params
	$(BIN)/python -m flows.pins

serve: $(READY) ## serve the Bento of LINE's present release on 127.0.0.1:3000
	@$(BIN)/ctfoundry serve --line $(LINE)

platform: $(READY) ## scheduled releases here, until Ctrl-C: Prefect's server on 127.0.0.1:4200, deployments, a worker
	@$(BIN)/ctfoundry platform up

image: $(READY) ## build the OCI image of LINE's present release as images/<line>, and test it (root; apt: buildah mmdebstrap runc)
	@$(BIN)/ctfoundry image --line $(LINE)

bench: $(READY) ## benchmarks against the peers, ratios printed
	@for file in tests/benchmarks/bench_*.py; do PYTHONPATH=. $(BIN)/python $$file || exit 1; done

clean: ## remove outputs, reports, state and the environment; DVC's cache and dvc.lock stay
	rm -rf .venv .ctfoundry data releases reports images .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find components flows serving tests -name __pycache__ -type d -prune -exec rm -rf {} +
