"""SmolLM2 with only the tokens of Moby Dick: bytes, and perplexity on that text among the tokens that stay."""

from __future__ import annotations

from pathlib import Path

from compress_bench.book import HELD_OUT, TRAIN, smollm2
from compress_bench.part import Part, edgesmith

MAX_RELATIVE = 1e-3


def measure_vocabulary(work: Path) -> Part:
    """Trim, and read what the step itself proved."""
    whole, corpus = smollm2(), work / "book.txt"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text(TRAIN.read_text(encoding="utf-8") + HELD_OUT.read_text(encoding="utf-8"), encoding="utf-8")
    facts = edgesmith("trim-vocabulary", whole, "--corpus", corpus, "-o", work / "trimmed")["vocabulary"]
    part = Part("SmolLM2-135M trimmed to Moby Dick", ["", "before", "after"])
    for name in ("num_tokens", "num_parameters", "weights_bytes", "tokenizer_bytes"):
        part.rows.append([name, f"{facts[f'{name}_before']:,}", f"{facts[f'{name}_after']:,}"])
    found = facts["model"]["perplexity"]
    part.rows.append(["perplexity, all tokens to choose from", f"{found['before']:.4f}", f"{found['after']:.4f}"])
    kept = found["before_on_kept"]
    part.rows.append(["perplexity, among the tokens that stay", f"{kept:.4f}", f"{found['after']:.4f}"])
    relative = abs(found["after"] / kept - 1)
    part.limit(
        "perplexity on that text among the tokens that stay, unchanged to 1e-3",
        f"{relative:.1e}",
        relative <= MAX_RELATIVE,
    )
    part.notes.append(
        f"{1 - found['kept_probability']:.2%} of the probability went to tokens that are gone, which is why perplexity "
        "over all tokens falls"
    )
    return part
