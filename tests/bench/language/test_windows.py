from __future__ import annotations

from pathlib import Path

import pytest

from bench.language.windows import cut_windows, find_added, read_text, windows_of
from edgesmith.errors import DataError, UnsupportedError, UsageError
from tests.bench.language.engines import KnownEngine


def test_the_second_half_of_each_window_is_scored_but_for_its_first_token() -> None:
    windows = cut_windows(range(1100), 512, bos=7)
    assert (windows.num_windows, windows.first, windows.num_scored) == (2, 256, 255)
    assert windows.targets[0].tolist() == list(range(257, 512))
    assert windows.input_of(1)[:3] == [7, 513, 514]
    assert windows.tokens[1, 0] == 512
    assert cut_windows(range(1100), 512).input_of(1)[0] == 512


def test_fewer_windows_are_spread_over_the_whole_text() -> None:
    windows = cut_windows(range(100), 10, max_windows=4)
    assert windows.tokens[:, 0].tolist() == [0, 20, 50, 70]
    assert cut_windows(range(100), 10, max_windows=99).num_windows == 10


def test_a_text_shorter_than_two_windows_is_refused_by_number() -> None:
    with pytest.raises(DataError, match=r"the text has 1,023 tokens, fewer than 2 windows of 512"):
        cut_windows(range(1023), 512)
    for length in (7, 9, 0, -2):
        with pytest.raises(UsageError, match=rf"a window of {length} tokens"):
            cut_windows(range(1000), length)
    with pytest.raises(UsageError, match="max_windows is 1"):
        cut_windows(range(1000), 100, max_windows=1)


def test_what_an_engine_begins_texts_with_begins_every_window() -> None:
    windows = windows_of(KnownEngine(), "call me ishmael " * 10, 16)
    assert windows.bos == 1
    assert windows.tokens[0, 0] == 1
    assert windows.input_of(3)[0] == 1
    with pytest.raises(UsageError, match=r"a window of 128 tokens does not fit into the 64"):
        windows_of(KnownEngine(), "text", 128)


def test_what_is_added_is_found_where_a_texts_pieces_change_with_it() -> None:
    def marked(text: str, adds: bool) -> list[int]:
        return [1, *([900 + ord(text[0])] if text else []), 2] if adds else [ord(one) for one in text]

    assert find_added(marked) == ([1], [2])
    assert find_added(lambda text, adds: [ord(one) for one in text]) == ([], [])
    assert find_added(lambda text, adds: [1] * adds + [ord(one) for one in text]) == ([1], [])
    assert find_added(lambda text, adds: [ord(one) for one in text] + [2] * adds) == ([], [2])


def test_what_is_added_and_cannot_be_told_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot be told from those of a text"):
        find_added(lambda text, adds: [5, 6] if adds else [1])
    with pytest.raises(UnsupportedError, match="cannot be told from those of a text"):
        find_added(lambda text, adds: [len(text) and ord(text)] * adds + [1])


def test_equal_digests_mean_equal_windows() -> None:
    one = cut_windows(range(100), 10, bos=1)
    assert one.digest == cut_windows(range(100), 10, bos=1).digest
    others = [cut_windows(range(100), 10), cut_windows(range(100), 20, bos=1), cut_windows(range(1, 101), 10, bos=1)]
    assert len({one.digest, *(other.digest for other in others)}) == 4


def test_plain_texts_are_read_whole_and_rows_joined(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\n  two\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "one\r\n\n  two\n"
    (tmp_path / "b.jsonl").write_text('{"text": "é"}\n{"text": "b"}\n', encoding="utf-8")
    assert read_text(tmp_path / "b.jsonl") == "é\n\nb"
    (tmp_path / "c.csv").write_text("body\nx\n", encoding="utf-8")
    assert read_text(tmp_path / "c.csv", "body") == "x"


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nno\xff\n")
    with pytest.raises(DataError, match=r"a\.txt:2: byte 0xff is not UTF-8"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"body": "b"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: has no text in column 'text'"):
        read_text(tmp_path / "b.jsonl")
    (tmp_path / "c.md").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        read_text(tmp_path / "c.md")
    with pytest.raises(DataError, match=r"\.pdf is no text"):
        read_text(tmp_path / "d.pdf")
    with pytest.raises(UsageError, match="no such text file"):
        read_text(tmp_path / "d.txt")
