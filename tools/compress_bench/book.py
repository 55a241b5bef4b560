"""SmolLM2 and Moby Dick: the model, the two parts of the book, and perplexity as every engine's is measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from compress_bench.part import ROOT, script

WINDOW, NUM_WINDOWS = 512, 24
NOVEL = ROOT / "examples" / "novel"
TRAIN, HELD_OUT = NOVEL / "data" / "train.txt", NOVEL / "data" / "held_out.txt"


def smollm2() -> Path:
    """The checkpoint, exact fp32."""
    script("examples/novel/prepare.py")
    sys.path += [str(NOVEL), str(ROOT / "examples" / "kit")]
    from smollm2 import smollm2_folder

    return Path(smollm2_folder())


def perplexity(checkpoint: Path, text: Path = HELD_OUT, num_windows: int = NUM_WINDOWS) -> dict[str, Any]:
    """Perplexity of a checkpoint in torch, fp32, with its interval."""
    from bench.language.measure import measure_language
    from edgesmith.stages.texts import Texts
    from export.reference_generation import TorchGenerationEngine

    engine = TorchGenerationEngine(checkpoint, threads=2)
    try:
        windows = Texts(path=text, window=WINDOW, num_windows=num_windows).cut(engine)
        return dict(measure_language(engine, windows).summary()["perplexity"])
    finally:
        engine.close()


def weights_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's tensors."""
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
