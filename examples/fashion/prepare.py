"""Obtain Fashion-MNIST and write a part of it as pictures, one file each, with the rows that name them.

Fashion-MNIST is 70,000 grey pictures of 28 × 28 pixels, in ten classes of clothing (H. Xiao, K. Rasul and
R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017; MIT
licence). It comes from the Debian package `dataset-fashion-mnist`, every file pinned by its SHA-256.

Run it with `python examples/fashion/prepare.py`; it writes `test.jsonl` and `train.jsonl` into `data/`, and the
PNG files below `data/test/` and `data/train/`. All 10,000 test pictures are written; of the training pictures only
as many as calibration, pruning and distillation look at. `train.py` reads the 60,000 from the package's own files.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "kit"))
from debian import DebianFiles, fetch_debian_files
from stamp import is_done, sha256_file, write_stamp

__all__ = ["DATA", "FASHION", "HERE", "LABELS", "read_split"]

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
NUM_WRITTEN = {"train": 60_000, "test": 10_000}
LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

FASHION = DebianFiles(
    package="dataset-fashion-mnist",
    folder="/usr/share/datasets/fashion-mnist",
    sha256={
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
)


def read_split(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read `train` or `test`: pictures of shape [num, 28, 28], black is 0, and the indices of their labels."""
    folder = fetch_debian_files(FASHION)
    stem = {"train": "train", "test": "t10k"}[name]
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    return pixels, _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of bytes: magic number, number of axes, their lengths as big-endian 32 bit, the values."""
    with gzip.open(path) as stream:
        content = stream.read()
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape.astype(int))


def write_pictures(name: str) -> list[Path]:
    """Write `data/NAME/*.png` and `data/NAME.jsonl`; return the row file, whole or not there at all."""
    from PIL import Image

    pixels, labels = read_split(name)
    shutil.rmtree(DATA / name, ignore_errors=True)
    (DATA / name).mkdir(parents=True)
    lines = []
    for index, (picture, label) in enumerate(zip(pixels[: NUM_WRITTEN[name]], labels, strict=False)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", optimize=False)
        relative = f"{name}/{index:05}.png"
        (DATA / relative).write_bytes(file.getvalue())
        lines.append(json.dumps({"image": relative, "label": LABELS[label]}))
    temporary = DATA / f"{name}.partial"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [temporary.replace(DATA / f"{name}.jsonl")]


def main() -> None:
    """Write the pictures and their rows unless they are there already."""
    stamp = DATA / "prepared.json"
    inputs = dict(FASHION.sha256) | {"script": sha256_file(Path(__file__))}
    if not is_done(stamp, inputs):
        stamp.unlink(missing_ok=True)
        written = [path for name in NUM_WRITTEN for path in write_pictures(name)]
        write_stamp(stamp, inputs, written)
    for name in NUM_WRITTEN:
        with (DATA / f"{name}.jsonl").open(encoding="utf-8") as stream:
            counts = Counter(json.loads(line)["label"] for line in stream)
        classes = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        print(f"{name}: {counts.total()} pictures ({classes})")


if __name__ == "__main__":
    main()
