#!/usr/bin/env bash
# The demo: fine-tune MiniLM on news texts, then one command to a gated INT8 artifact, then a question to it.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"

show() {
    printf '\n$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_.\/-]*\)'/\1/g"
    "$@"
}

show python examples/news/prepare.py
show python examples/news/finetune.py
show edgesmith run examples/news/recipe.yaml --out out/news
show edgesmith predict out/news/server \
    "The central bank cut interest rates after shares fell for a third week." \
    "The striker scored twice and the champions are through to the final."
