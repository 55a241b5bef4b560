#!/usr/bin/env bash
# The vision demo: train a ResNet on Fashion-MNIST, then one command to a judged artifact of half its work.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"

show() {
    printf '\n$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_.\/-]*\)'/\1/g"
    "$@"
}

show python examples/fashion/prepare.py
show python examples/fashion/train.py
show edgesmith run examples/fashion/recipe.yaml --out out/fashion
show edgesmith predict out/fashion/server examples/fashion/data/test/00000.png examples/fashion/data/test/00001.png
