from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from bench.machine.page_cache import drop_from_cache, is_cached

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops files")


def test_a_dropped_file_is_read_from_the_disk(tmp_path: Path) -> None:
    file, empty = tmp_path / "weights", tmp_path / "empty"
    file.write_bytes(b"x" * 300_000)
    empty.touch()
    assert is_cached(file)
    if not drop_from_cache([file, empty]):
        pytest.skip("this file system lives in memory")
    assert is_cached(file) is False
    file.read_bytes()
    assert is_cached(file)


def test_what_cannot_be_dropped_is_not_said_to_be(tmp_path: Path) -> None:
    assert not drop_from_cache([tmp_path / "missing"])
    file = tmp_path / "mapped"
    file.write_bytes(b"x" * 300_000)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) > 0  # every page is in this process
        assert not drop_from_cache([file])
