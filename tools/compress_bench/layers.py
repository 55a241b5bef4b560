"""A quarter of SmolLM2's layers left out by block influence, and what distillation wins back."""

from __future__ import annotations

from pathlib import Path

from compress_bench.book import HELD_OUT, TRAIN, perplexity, smollm2, weights_bytes
from compress_bench.part import Part, edgesmith

NUM_LAYERS = 22  # of 30: at least a quarter goes
MAX_MINUTES = 20
DISTILL = ("--max-minutes", str(MAX_MINUTES), "--hard", "0.5", "--epochs", "3", "--learning-rate", "0.0003")


def measure_layers(work: Path) -> Part:
    """Trim the vocabulary to the book, so that training is faster; leave out layers; distill."""
    whole, trimmed, cut, student = smollm2(), work / "trimmed", work / "cut", work / "student"
    corpus = work / "book.txt"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text(TRAIN.read_text(encoding="utf-8") + HELD_OUT.read_text(encoding="utf-8"), encoding="utf-8")
    edgesmith("trim-vocabulary", whole, "--corpus", corpus, "-o", trimmed)
    edgesmith("prune", trimmed, "--num-layers", str(NUM_LAYERS), "--data", TRAIN, "-o", cut)
    facts = edgesmith("distill", trimmed, "--student", cut, "--data", TRAIN, *DISTILL, "-o", student)["training"]
    part = Part("SmolLM2-135M without a quarter of its layers", ["model", "MB", "held-out perplexity", "interval"])
    found = {}
    for name, folder in {"all 30 layers": trimmed, f"{NUM_LAYERS} layers": cut, "distilled": student}.items():
        measured = perplexity(folder)
        found[name] = measured["estimate"]
        interval = f"{measured['lower']:.2f} to {measured['upper']:.2f}"
        part.rows.append([name, f"{weights_bytes(folder) / 1e6:.0f}", f"{measured['estimate']:.2f}", interval])
    before, cut_off, after = found.values()
    won = (cut_off - after) / (cut_off - before)
    part.limit("at least half of the lost perplexity is won back", f"{won:.0%}", won >= 0.5)
    part.notes.append(f"training: {facts['num_updates']} updates; {facts['stopped_because']}")
    return part
