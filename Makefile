# Two commands are all that is needed: `make demo` and `make test`. Both make .venv and install what they use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEB := onnxruntime-web@1.30 ai@6 @ai-sdk/openai-compatible@2 zod@4
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo drift test check format bench browser clean

help:
	@echo "make demo    the whole loop on real input: a big model, a node, traffic, an expert, a bill (about 4 minutes)"
	@echo "make drift   the same, and half-way the big model changes its answers"
	@echo "make test    lint, types and tests (under 10 minutes)"
	@echo "make browser what some tests use: Chromium, and from npm onnxruntime-web and the AI SDK (part of make test)"
	@echo "make bench   the benchmarks of docs/benchmarks.md; needs DATA=folder of CLINC150"
	@echo "make clean   removes .venv, caches and demo results"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Puhui needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Puhui and the demo's packages into $(VENV) …"
	$(INSTALL) ".[demo]"
	@touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Puhui and what its tests use into $(VENV) …"
	$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/puhui demo

drift: $(VENV)/demo.stamp
	$(BIN)/puhui demo --drift

check: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: check browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench.guarantee --data $(DATA) --save
	$(BIN)/python -m bench.static --data $(DATA) --save
	$(BIN)/python -m bench.shapes --data $(DATA) --save
	-$(BIN)/python -m bench.browser --data $(DATA) --save
	$(BIN)/python -m bench.crash
	$(BIN)/python -m bench.gateway --save
	$(BIN)/python -m bench.soak --minutes 20 --save
	$(BIN)/python -m bench.fuzz --bodies 100000 --save
	$(BIN)/python -m bench.compress --data $(DATA) --save

browser:
	@if command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium …"; { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
			chromium chromium-driver fonts-wqy-microhei; } >/dev/null || echo "no Chromium: tests in a browser are skipped"; \
	else echo "Install chromium and chromedriver (not root, or no apt-get here): tests in a browser are skipped"; fi
	@if [ -d build/web/node_modules/ai ]; then :; elif command -v npm >/dev/null; then \
		npm install --prefix build/web --no-save --no-audit --no-fund --ignore-scripts --silent $(WEB) \
			|| echo "npm failed: tests of encoders in a browser and of a chat page are skipped"; \
	else echo "npm is not here: tests of encoders in a browser and of a chat page are skipped"; fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-results build src/*.egg-info
