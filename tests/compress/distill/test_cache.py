from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.distill.cache import Field, TeacherCache
from edgesmith.errors import StorageError

COUNTS = np.array([2, 0, 1, 3, 1])
FIELDS = {"ids": Field(dtype=np.uint16, width=2), "values": Field(dtype=np.float32, width=1)}


def answers(rows: Sequence[int]) -> Mapping[str, NDArray[np.generic]]:
    numbers = np.repeat(np.array(rows), COUNTS[list(rows)])
    return {"ids": np.stack([numbers, numbers + 1], axis=1), "values": numbers[:, None] / 7}


def cache_in(folder: Path, identity: str = "one") -> TeacherCache:
    return TeacherCache(folder, FIELDS, COUNTS, identity=identity)


def check(cache: TeacherCache) -> None:
    found = cache.read([3, 0, 1])
    assert found["ids"].tolist() == [[3, 4]] * 3 + [[0, 1]] * 2
    np.testing.assert_array_equal(found["values"], np.float32([[3 / 7]] * 3 + [[0]] * 2))


def test_rows_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.fill(answers, piece_rows=2) == 5
    check(cache)
    assert cache.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.bin")) == 7 * (4 + 4)


def test_a_kill_loses_one_piece_at_most(tmp_path: Path) -> None:
    asked: list[int] = []

    def killed_in_row_4(rows: Sequence[int]) -> Mapping[str, NDArray[np.generic]]:
        if 4 in rows:
            raise KeyboardInterrupt
        return answers(rows)

    with pytest.raises(KeyboardInterrupt):
        cache_in(tmp_path).fill(killed_in_row_4, piece_rows=2)
    again = cache_in(tmp_path)
    assert again.fill(lambda rows: asked.extend(rows) or answers(rows), piece_rows=2) == 1
    assert asked == [4]
    check(again)


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    cache_in(tmp_path).fill(answers, piece_rows=2)
    again = cache_in(tmp_path)
    assert again.fill(lambda _: pytest.fail("asked again"), piece_rows=2) == 0
    check(again)


def test_another_identity_or_a_cut_file_is_written_anew(tmp_path: Path) -> None:
    cache_in(tmp_path).fill(answers, piece_rows=5)
    assert cache_in(tmp_path, identity="two").fill(answers, piece_rows=5) == 5
    (tmp_path / "ids.bin").write_bytes(b"")
    again = cache_in(tmp_path, identity="two")
    assert again.fill(answers, piece_rows=5) == 5
    check(again)


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, FIELDS, np.array([1 << 50]), identity="large")
    with pytest.raises(StorageError, match=r"teacher.s outputs need 9007199\.25 GB"):
        cache.fill(answers, piece_rows=1)
    assert not list(tmp_path.iterdir())
