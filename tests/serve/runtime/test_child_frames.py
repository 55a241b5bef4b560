from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from serve.runtime.child_frames import BrokenFrameError, Frame, Link, LostError

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64"]


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    one, other = (Link(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def exchange(frame: Frame) -> Frame:
    """Send a frame from another thread, as larger ones than a socket holds are."""
    one, other = (Link(end) for end in socket.socketpair())
    sender = threading.Thread(target=one.send, args=(frame,))
    sender.start()
    received = other.receive()
    sender.join()
    one.close()
    other.close()
    return received


def answer_to(raw: bytes) -> Frame:
    """What a link makes of bytes."""
    sending, receiving = socket.socketpair()
    sending.sendall(raw)
    sending.close()
    link = Link(receiving)
    try:
        return link.receive()
    finally:
        link.close()


def packed(header: Any, payload: bytes = b"", *, stated: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<IQ", len(text), len(payload) if stated is None else stated) + text + payload


@given(st.sampled_from(DTYPES).flatmap(lambda name: npst.arrays(name, npst.array_shapes(min_dims=0, min_side=0))))
def test_every_array_comes_as_it_was_sent(array: NDArray[Any]) -> None:
    received = exchange(Frame({"op": "run"}, {"x": array, "y": array.T})).arrays
    for name, sent in (("x", array), ("y", array.T)):
        assert received[name].dtype == sent.dtype
        assert received[name].shape == sent.shape
        assert received[name].tobytes() == sent.tobytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_every_text_comes_as_it_was_sent(texts: list[str]) -> None:
    received = exchange(Frame({"text": texts}, {"x": np.array(texts, dtype=object)}))
    assert received.values["text"] == texts
    assert received.arrays["x"].tolist() == texts


def test_arrays_larger_than_any_buffer_come_whole() -> None:
    arrays = {str(at): np.random.default_rng(at).normal(size=20_000).astype(np.float32) for at in range(70)}
    received = exchange(Frame({}, arrays)).arrays
    assert all(np.array_equal(received[name], array) for name, array in arrays.items())


def test_received_arrays_may_be_changed(ends: tuple[Link, Link]) -> None:
    ends[0].send(Frame({}, {"x": np.zeros(3)}))
    received = ends[1].receive().arrays["x"]
    received += 1
    assert received.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (struct.pack("<IQ", 2**31, 0), "above the limits"),
        (struct.pack("<IQ", 2, 2**40) + b"{}", "above the limits"),
        (packed(b"no json"), "no JSON"),
        (packed(b"[" * 100_000), "no JSON"),
        (packed([]), "no values"),
        (packed({"values": {}}), "lists no arrays"),
        (packed({"values": {}, "arrays": [["x", "float32", [2], 4]]}, b"1234"), "cannot have 4 bytes"),
        (packed({"values": {}, "arrays": [["x", "object", [1], 8]]}, b"12345678"), "describes no array"),
        (packed({"values": {}, "arrays": [["x", "float32", [-1], 4]]}, b"1234"), "describes no array"),
        (packed({"values": {}, "arrays": [["x", "float32", [True], 4]]}, b"1234"), "describes no array"),
        (packed({"values": {}, "arrays": [["x", "int8", [1] * 33, 1]]}, b"1"), "describes no array"),
        (packed({"values": {}, "arrays": [["x", "int8", [2**40, 2**40], 4]]}, b"1234"), "cannot have 4 bytes"),
        (packed({"values": {}, "arrays": [["x", "int8", [4], 4]]}, b"12345678"), "add up"),
        (packed({"values": {}, "arrays": [["x", "int8", [1], 1], ["x", "int8", [1], 1]]}, b"12"), "twice"),
        (packed({"values": {}, "arrays": [["x", "string", [2], 5]]}, b'["a"]'), "is not 2 texts"),
        (packed({"values": {}, "arrays": [["x", "string", [1], 3]]}, b"[1]"), "is not 1 texts"),
    ],
)
def test_what_is_no_frame_is_refused_before_memory_is_taken(raw: bytes, reason: str) -> None:
    with pytest.raises(BrokenFrameError, match=reason):
        answer_to(raw)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_one_of_two_errors(raw: bytes) -> None:
    with contextlib.suppress(BrokenFrameError, LostError):
        answer_to(raw)


def test_one_end_notices_that_the_other_has_gone(ends: tuple[Link, Link]) -> None:
    ends[1].close()
    with pytest.raises(LostError):
        ends[0].receive()
    with pytest.raises(LostError):
        ends[0].send(Frame({}))


def test_silence_is_an_error_after_the_time_that_was_set(ends: tuple[Link, Link]) -> None:
    ends[0].set_timeout(0.01)
    with pytest.raises(TimeoutError):
        ends[0].receive()
