from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.protocols.base import AnswerError
from bench.load.protocols.events import EventParser
from bench.load.protocols.openai import TokenReader

STREAM = (
    b'\xef\xbb\xbf: a comment\r\ndata: {"a": 1}\r\n\r\nevent: other\ndata:two\ndata: l\xc3\xa4nes\n\n'
    b"\n\ndata\n\nid: 4\rdata: cr only\r\rretry: 5\n\ndata: [DONE]\n\ndata: unfinished"
)
EVENTS = ['{"a": 1}', "two\nlänes", "", "cr only", "[DONE]"]


def test_events_of_a_whole_stream() -> None:
    assert EventParser().feed(STREAM) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_one_cut_anywhere_changes_nothing(cut: int) -> None:
    parser = EventParser()
    assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == EVENTS


@pytest.mark.parametrize("size", range(1, 12))
def test_equal_pieces_change_nothing(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[begin : begin + size] for begin in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1)), st.data())
def test_whatever_is_written_is_read(texts: list[str], data: st.DataObject) -> None:
    stream = "".join(f"data: {text}\n\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parser = EventParser()
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event for piece in pieces for event in parser.feed(piece)] == texts


def chunk(content: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    return f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': finish}]})}\n\n".encode()


def test_first_token_is_the_first_that_is_not_empty() -> None:
    reader = TokenReader()
    for moment, data in enumerate([chunk(""), chunk(""), chunk("a"), chunk("b"), chunk(finish="stop")]):
        reader.feed(data, moment)
    reader.finish()
    assert reader.token_ns == [2, 3]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (chunk("a"), "stream ended early"),
        (chunk("a") + b"data: [DONE]\n\n", "stream ended early"),
        (chunk(finish="stop"), "no token"),
        (chunk("a") + chunk(finish="bored"), "finish_reason"),
        (b"data: {no json\n\n", "not JSON"),
        (b"data: \xff\n\n", "not JSON"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "error in the stream"),
        (b"data: [1]\n\n", "not JSON"),
        (b"", "stream ended early"),
    ],
)
def test_wrong_streams_fail_by_name(data: bytes, name: str) -> None:
    reader = TokenReader()
    reader.feed(data, 1)
    with pytest.raises(AnswerError) as caught:
        reader.finish()
    assert caught.value.name == name


def test_usage_after_the_end_and_completions_are_read() -> None:
    reader = TokenReader()
    reader.feed(
        b'data: {"choices": [{"text": "x"}]}\n\ndata: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n', 7
    )
    reader.feed(b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n', 8)
    reader.finish()
    assert reader.token_ns == [7]
    assert reader.num_tokens == 1


def test_tokens_are_counted_by_the_server_only() -> None:
    reader = TokenReader()
    reader.feed(chunk("a") + b'data: {"choices": [], "usage": null}\n\n' + chunk("b", finish="stop"), 1)
    reader.finish()
    assert reader.num_tokens is None
    assert len(reader.token_ns) == 2
