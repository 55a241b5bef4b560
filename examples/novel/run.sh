#!/usr/bin/env bash
# The language demo: fine-tune SmolLM2 on a novel, then one command to gated GGUF and ONNX artifacts, then a sentence.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"

show() {
    printf '\n$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_.\/-]*\)'/\1/g"
    "$@"
}

if ! python -c 'import llama_cpp, gguf' 2>/dev/null; then
    echo "llama-cpp-python is not installed: it is compiled by \`make setup\` where there is a C++ compiler." >&2
    echo "  → Debian, Ubuntu: apt-get install g++, then: rm .venv/.ready; make setup" >&2
    exit 2
fi
show python examples/novel/prepare.py
show python examples/novel/finetune.py
show edgesmith run examples/novel/recipe.yaml --out out/novel
show edgesmith generate out/novel/phone "The whale" --max-tokens 40
show edgesmith generate out/novel/box "The whale" --max-tokens 40
