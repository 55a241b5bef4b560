"""Fixtures that every test may use: a real model and real texts, fetched once and kept outside the checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never reach a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).parent.parent
for _folder in ("kit", "news"):
    sys.path.append(str(ROOT / "examples" / _folder))  # last: its bench.py must not hide our package


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would give out the files with many tests first, and our longest ones have few.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins a long one when the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as its package carries it: a Hugging Face folder, 22.7 M parameters."""
    import prepare

    folder: Path = prepare.minilm_folder()
    return folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in fp32, from the Q4_1 file that a package carries."""
    import smollm2

    try:
        folder: Path = smollm2.smollm2_folder()
    except SystemExit as error:
        pytest.skip(f"SmolLM2 is not to be had: {error}")
    return folder


@pytest.fixture(scope="session")
def news_rows() -> list[dict[str, str]]:
    """BBC news articles: `text` and `label`, near-duplicates left out, in a fixed order."""
    import prepare

    return [{"text": text, "label": label} for label, text in prepare.news_articles()]


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of the test's own, which commands use too."""
    root = tmp_path / "store"
    monkeypatch.setenv("EDGESMITH_STORE", str(root))
    return root
