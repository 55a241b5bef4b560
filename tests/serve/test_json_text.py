from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve import json_text
from serve.errors import MalformedError
from serve.json_text import MAX_CONTAINERS, dump_json, parse_json, parse_long_json

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    LEAVES | st.text('[]{}"\\'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\'), inner),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.integers(0, 6), st.booleans())
@example([["\\"], ['"[[['], {}], 2, False)
def test_text_is_parsed_exactly_when_it_is_not_too_deep(value: Any, max_depth: int, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    if depth_of(value) <= max_depth:
        assert parse_json(text, max_depth=max_depth) == value
    else:
        with pytest.raises(MalformedError, match=f"{max_depth} are allowed"):
            parse_json(text, max_depth=max_depth)


@given(st.binary(max_size=60) | st.text('[]{}",:\\1 ', max_size=60).map(str.encode))
def test_any_bytes_are_parsed_as_the_standard_library_does_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, max_depth=3)
    except MalformedError:
        return
    assert json.loads(data) == value
    assert depth_of(value) <= 3


def test_depth_of_101_is_refused_and_of_100_is_not() -> None:
    assert depth_of(parse_json(b"[" * 100 + b"]" * 100, max_depth=100)) == 100
    with pytest.raises(MalformedError, match="101"):
        parse_json(b"[" * 101 + b"]" * 101, max_depth=100)
    with pytest.raises(MalformedError):
        parse_json(b'{"a":' * 3_000_000, max_depth=100)


@pytest.mark.parametrize("filler", ['"', "\\", "x", "\\["])
def test_brackets_in_a_text_that_crosses_chunks_are_no_depth(filler: str) -> None:
    value = ["[" * 200, filler * (3 << 20), {"a": "{[" * 200}]
    assert parse_json(json.dumps(value).encode(), max_depth=3) == value
    with pytest.raises(MalformedError, match="at least 3"):
        parse_json(json.dumps([filler * (3 << 20), [[1]], "[" * 200]).encode(), max_depth=2)


def test_too_many_containers_are_refused_before_they_are_built() -> None:
    with pytest.raises(MalformedError, match=str(MAX_CONTAINERS)):
        parse_json(b"[" + b"[]," * MAX_CONTAINERS + b"1]", max_depth=100)


@pytest.mark.parametrize("text", [b"", b"NaN", b"[Infinity]", b"[1,]", b'"\xff"', b'"\\ud800"', b"{'a':1}", b"[1] 2"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedError, match="no JSON"):
        parse_json(text, max_depth=100)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_buffer_is_read(kind: Any) -> None:
    assert parse_json(kind(b'{"a": [1, 2]}'), max_depth=2) == {"a": [1, 2]}
    with pytest.raises(MalformedError):
        parse_json(kind(b'{"a": [1, [2]]}'), max_depth=2)


def test_arrays_are_written_as_lists_and_what_json_lacks_as_null() -> None:
    assert (
        dump_json({"a": np.array([1.5, np.nan, np.inf], np.float16), "b": np.int64(3)})
        == b'{"a":[1.5,null,null],"b":3}'
    )


def read_long(data: bytes) -> Any:
    """What `parse_long_json` gives, its long lists put where they belong."""
    value, lists = parse_long_json(data, max_depth=6)

    def fill(part: Any) -> Any:
        pieces = lists.pieces(part)
        if pieces is not None:
            return [leaf for piece in pieces for leaf in piece]
        if isinstance(part, dict):
            return {key: fill(inner) for key, inner in part.items()}
        return [fill(inner) for inner in part] if isinstance(part, list) else part

    found = fill(value)
    lists.check()
    return found


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are long, chunks full and pieces large at a few bytes."""
    monkeypatch.setattr(json_text, "_LONG_BYTES", 4)
    monkeypatch.setattr(json_text, "_PIECE_BYTES", 3)
    monkeypatch.setattr(json_text, "_CHUNK_BYTES", 7)


NUMBERS = st.lists(
    st.integers(-9, 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(), min_size=2
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        LEAVES | NUMBERS | st.text('[]{}"\\,1', max_size=12),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\1'), inner),
        max_leaves=12,
    )
)
@example(["[1,2,3,4,5,6]", '\\"[1,2,3,4,5]', [1, 2, 3, 4, 5], "]", [True, None, 1.5]])
def test_text_with_long_lists_is_parsed_as_any_other(tiny: None, value: Any) -> None:
    del tiny
    text = json.dumps(value).encode()
    try:
        wanted = parse_json(text, max_depth=6)
    except MalformedError:
        with pytest.raises(MalformedError):
            read_long(text)
    else:
        assert read_long(text) == wanted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.text('[]{}",:\\1 ', max_size=40).map(str.encode) | st.text("1, ", max_size=20).map(lambda t: f"[{t}]".encode())
)
@example(b"[1,2,3,4,5,6,]")
@example(b"[1,2,3,,4,5,6]")
@example(b"[      ]")
@example(b"[   ,   ]")
@example(b'[1,\\"2,3,4,5,6]')
@example(b'{"a":[1,2,3,4,5 6]}')
def test_no_text_becomes_json_by_having_long_lists(tiny: None, data: bytes) -> None:
    del tiny
    try:
        wanted = parse_json(data, max_depth=6)
    except MalformedError:
        with pytest.raises(MalformedError):
            read_long(data)
    else:
        assert read_long(data) == wanted


def test_list_that_nobody_reads_must_be_json_too() -> None:
    text = b'{"a":[' + b"1," * (1 << 18) + b"x]}"
    _, lists = parse_long_json(text, max_depth=2)
    with pytest.raises(MalformedError):
        lists.check()
