from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.data import data_digest, read_rows, sample_rows
from edgesmith.errors import DataError, EdgesmithError, UsageError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS), min_size=1))
def test_jsonl_round_trips(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = _write(tmp_path_factory.getbasetemp(), "rows.jsonl", text)
    assert [row.values for row in read_rows(path)] == rows


@settings(deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1), table=st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_tables_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], table: tuple[str, str]
) -> None:
    extension, delimiter = table
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = _write(tmp_path_factory.getbasetemp(), f"rows.{extension}", buffer.getvalue())
    assert [tuple(row.values.values()) for row in read_rows(path)] == rows


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_mark_and_line_ends_leave_no_trace(tmp_path: Path, bom: bytes, end: bytes) -> None:
    jsonl = _write(tmp_path, "a.jsonl", bom + b'{"text": "one"}' + end + end + b'{"text": "two"}')
    table = _write(tmp_path, "a.csv", bom + end.join([b"text,label", b"one,x", b"", b"two,y", b""]))
    assert [(row.line, row.values) for row in read_rows(jsonl)] == [(1, {"text": "one"}), (3, {"text": "two"})]
    assert [(row.line, row.values["text"]) for row in read_rows(table)] == [(2, "one"), (4, "two")]


def test_line_of_a_row_counts_the_lines_inside_quotes(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", 'text,label\n"one\n\ntwo",x\nthree,y\n')
    assert [(row.line, row.values["text"]) for row in read_rows(path)] == [(2, "one\n\ntwo"), (5, "three")]


def test_place_names_file_and_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '\n{"text": "one"}\n')
    assert next(read_rows(path)).place == f"{path}:2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a\.jsonl:2:7: bad JSON: Expecting value"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: the row is a JSON list"),
        ("a.jsonl", '{"a": NaN}\n', r"a\.jsonl:1: NaN is not JSON"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', r"a\.jsonl:1: the key 'a' stands twice"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", r"a\.jsonl:1: JSON nested too deeply"),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}\n", r"a\.jsonl:1: .*digits"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', r"a\.jsonl:2: byte 0xe9 at column 11 is not UTF-8"),
        ("a.csv", b"text,label\none,x\ncaf\xe9,y\n", r"a\.csv:3: byte 0xe9 at column 4 is not UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
        ("a.csv", "text,text\none,x\n", r"a\.csv:1: two columns are named 'text'"),
        ("a.csv", "text,\none,x\n", r"a\.csv:1: column 2 has no name"),
        ("a.csv", "text,label\none,x\ntwo\n", r"a\.csv:3: 1 fields, but the header has 2 columns"),
        ("a.csv", "text,label\none,x,y\n", r"a\.csv:2: 3 fields, but the header has 2 columns"),
        ("a.csv", 'text,label\none,x\n"two,y\n', r"a\.csv:3: broken row"),
        ("a.tsv", 'text\tlabel\n"one" two\tx\n', r"a\.tsv:2: broken row"),
        ("a.json", "[]", "json is not a data format"),
        ("a", "", "no extension is not a data format"),
    ],
)
def test_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = _write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    assert caught.value.mend
    assert caught.value.exit_code == 4


def test_missing_file_and_folder_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.csv", "folder.csv"):
        with pytest.raises(UsageError, match="no such data file"):
            list(read_rows(tmp_path / name))
        with pytest.raises(UsageError, match="no such data file"):
            data_digest(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file_is_a_typed_error(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", "text\none\n")
    path.chmod(0)
    with pytest.raises(EdgesmithError, match="Permission"):
        list(read_rows(path))


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv"]))
def test_any_bytes_give_rows_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, extension: str
) -> None:
    path = _write(tmp_path_factory.getbasetemp(), f"any.{extension}", content)
    with contextlib.suppress(DataError):
        assert list(read_rows(path))


def test_rows_stream_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": "x" * 1000, "n": number}) + "\n" for number in range(20_000))
    tracemalloc.start()
    num_rows = sum(1 for _ in read_rows(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 20_000
    assert peak_bytes < 2_000_000 < path.stat().st_size


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    return _write(tmp_path, "n.csv", "n\n" + "".join(f"{number}\n" for number in range(1000)))


def test_sample_is_fixed_for_a_seed_on_every_platform(numbered: Path) -> None:
    drawn = [int(row.values["n"]) for row in sample_rows(numbered, 5, 7)]
    assert drawn == [53, 759, 789, 894, 923]
    code = (
        "import sys; from pathlib import Path; from edgesmith.data import sample_rows;"
        "print([int(row.values['n']) for row in sample_rows(Path(sys.argv[1]), 5, 7)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "99"}
    again = subprocess.run(
        [sys.executable, "-c", code, str(numbered)], env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout) == drawn


def test_sample_is_in_order_without_repeats_and_part_of_a_larger_one(numbered: Path) -> None:
    small, large = ([row.line for row in sample_rows(numbered, num, 1)] for num in (50, 200))
    assert small == sorted(set(small))
    assert len(small) == 50
    assert set(small) < set(large)


def test_samples_of_other_seeds_differ(numbered: Path) -> None:
    assert [row.line for row in sample_rows(numbered, 20, 1)] != [row.line for row in sample_rows(numbered, 20, 2)]


def test_sample_larger_than_the_file_is_the_file(numbered: Path) -> None:
    assert [row.values for row in sample_rows(numbered, 5000, 1)] == [row.values for row in read_rows(numbered)]


def test_sample_is_uniform(numbered: Path) -> None:
    counts = [0] * 1000
    for seed in range(60):
        for row in sample_rows(numbered, 100, seed):
            counts[int(row.values["n"])] += 1
    # Binomial with mean 6: quarters of the file have mean 1500 and a standard deviation of about 32.
    quarters = [sum(counts[start : start + 250]) for start in range(0, 1000, 250)]
    assert all(abs(quarter - 1500) < 160 for quarter in quarters)


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    one, two = _write(tmp_path, "a.csv", "x\n1\n"), _write(tmp_path, "b.csv", "x\n1\n")
    assert data_digest(one) == data_digest(two)
    _write(tmp_path, "b.csv", "x\n2\n")
    assert data_digest(one) != data_digest(two)
