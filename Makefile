# Every target sets up .venv by itself when it is missing, or older than pyproject.toml or constraints.txt.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
READY := .venv/.ready
CLIENTS := .venv-clients/.ready .venv-ray/.ready
# Threads of torch that wait for others sleep: spinning ones slow down everything else on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# Options for pytest: `make test PYTEST=tests/compress`, `make test PYTEST='-k merge -x'`.
PYTEST ?=

.PHONY: help setup demo demo-llm test check lint bench simulate bench-duet bench-load bench-gguf bench-serve bench-compress demo-small clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt tools/setup-venv
	@tools/setup-venv
	@touch $@

setup: $(READY)  ## make .venv with the pinned libraries (torch for the CPU where there is no NVIDIA GPU)

.venv-clients/.ready: tests/serve/clients/requirements.txt tools/setup-clients $(READY)
	@tools/setup-clients .venv-clients $<

.venv-ray/.ready: tests/serve/clients/ray.txt tools/setup-clients $(READY)
	@tools/setup-clients .venv-ray $<

.venv-peers/.ready: tools/serve_peers.txt tools/setup-clients $(READY)
	@tools/setup-clients .venv-peers $<

demo: $(READY)  ## fine-tune MiniLM on news texts, then: merge, export, quantize, verify, measure, judge, answer
	@examples/news/run.sh

demo-llm: $(READY)  ## fine-tune SmolLM2 on a novel, then: merge, GGUF Q4_K_M and int4 ONNX, verify, measure, judge, write
	@examples/novel/run.sh

demo-small: $(READY)  ## the demo's model in a tenth of the size: trimmed, pruned, distilled, int8, through the same gates (6 min)
	@examples/news/small.sh

test: $(READY) $(CLIENTS)  ## run all tests, the slow ones too, two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

lint: $(READY)  ## style, format, types, and who may import whom
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

check: lint $(CLIENTS)  ## lint, and all tests but the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST)

bench: $(READY)  ## measure what the README claims, on this machine
	@$(BIN)/python examples/news/measure.py

simulate: $(READY)  ## how often the gates err: the tables of docs/statistics.md, by simulation
	@PYTHONPATH=. $(BIN)/python tools/simulate_gates.py

bench-duet: $(READY)  ## how often planted slowdowns are found, and how often nothing is taken for one (40 min)
	@PYTHONPATH=. $(BIN)/python tools/measure_duet.py --seconds 45

bench-load: $(READY)  ## what the load generator costs, and how late it sends
	@PYTHONPATH=. $(BIN)/python tools/measure_load.py

bench-gguf: $(READY)  ## quality, size and speed of GGUF types, importance matrices and chosen bits, on SmolLM2 (30 min)
	@PYTHONPATH=. $(BIN)/python tools/measure_gguf.py

bench-serve: $(READY) $(CLIENTS) .venv-peers/.ready  ## what the server costs, and how it fails: beside other servers (60 min)
	@PYTHONPATH=. $(BIN)/python tools/measure_serve.py

bench-compress: $(READY)  ## what trimming, pruning and distilling save and cost: news, pictures, SmolLM2 (2 h)
	@PYTHONPATH=. $(BIN)/python tools/measure_compress.py

clean:  ## remove what was made here (not .venv, not the caches below ~/.cache/edgesmith)
	@rm -rf out build dist *.egg-info examples/*/{data,work,out}
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
