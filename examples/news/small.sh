#!/usr/bin/env bash
# The demo's model in a tenth of the size: its vocabulary, layers and widths are cut, and what is left is distilled.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"

show() {
    printf '\n$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_.\/=-]*\)'/\1/g"
    "$@"
}

show python examples/news/prepare.py
show python examples/news/finetune.py
show edgesmith run examples/news/small.yaml --out out/news-small
show edgesmith bundle news=out/news-small/phone -o out/news-small.tar.zst
show edgesmith predict out/news-small/phone \
    "The central bank cut interest rates after shares fell for a third week." \
    "The striker scored twice and the champions are through to the final."
