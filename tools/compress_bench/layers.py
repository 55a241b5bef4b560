"""A quarter of SmolLM2's layers left out by block influence, and what distillation wins back."""

from __future__ import annotations

import time
from pathlib import Path

from compress_bench.book import HELD_OUT, TRAIN, perplexity, smollm2, weights_bytes
from compress_bench.part import Part, edgesmith

NUM_LAYERS = 22  # of 30: at least a quarter goes
MAX_MINUTES = 20
# In so little time the text is not gone through twice: the teacher is run on what is read, not on everything before.
DISTILL = {
    "--max-minutes": "18",
    "--cache-top-k": "0",
    "--batch-size": "4",
    "--learning-rate": "0.0002",
    "--hard": "0.5",
    "--epochs": "1",
}


def measure_layers(work: Path) -> Part:
    """Trim the vocabulary to the book, so that training is faster; leave out layers; distill."""
    whole, trimmed, cut, student = smollm2(), work / "trimmed", work / "cut", work / "student"
    corpus = work / "book.txt"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text(TRAIN.read_text(encoding="utf-8") + HELD_OUT.read_text(encoding="utf-8"), encoding="utf-8")
    edgesmith("trim-vocabulary", whole, "--corpus", corpus, "-o", trimmed)
    edgesmith("prune", trimmed, "--num-layers", str(NUM_LAYERS), "--data", TRAIN, "-o", cut)
    begin = time.monotonic()
    options = [part for pair in DISTILL.items() for part in pair]
    facts = edgesmith("distill", trimmed, "--student", cut, "--data", TRAIN, *options, "-o", student)["training"]
    minutes = (time.monotonic() - begin) / 60
    part = Part("SmolLM2-135M without a quarter of its layers", ["model", "MB", "held-out perplexity", "interval"])
    found = {}
    for name, folder in {"all 30 layers": trimmed, f"{NUM_LAYERS} layers": cut, "distilled": student}.items():
        measured = perplexity(folder)
        found[name] = measured["value"]
        interval = f"{measured['lower']:.2f} to {measured['upper']:.2f}"
        part.rows.append([name, f"{weights_bytes(folder) / 1e6:.0f}", f"{measured['value']:.2f}", interval])
    before, cut_off, after = found.values()
    won = (cut_off - after) / (cut_off - before)
    part.limit("at least half of the lost perplexity is won back", f"{won:.0%}", won >= 0.5)
    part.limit(f"distilled in ≤ {MAX_MINUTES} minutes", f"{minutes:.1f} minutes", minutes <= MAX_MINUTES)
    part.notes.append(f"training: {facts['num_updates']} updates; {facts['stopped_because']}")
    return part
