"""Without the cyclic collector: what a request held is free as soon as it is answered."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serve.http.exchange import Exchange
from serve.models.job import GenerationJob
from serve.protocols.openai.answer import _Writing
from serve.protocols.rows import _Run
from tests.serve.protocols.openai.asking import open_stream, post, wait_until
from tests.serve.protocols.openai.conftest import OpenAiServing

KINDS = (Exchange, GenerationJob, _Run, _Writing)
WORDS = ["word " * (1 + index % 40) for index in range(90)]


def alive() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in KINDS)


@contextmanager
def leaving_nothing() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
        wait_until(lambda: not alive(), 3.0)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict/encoder", WORDS, 200),
        ("/v1/embeddings", {"model": "encoder", "input": WORDS}, 200),
        ("/v1/embeddings", {"model": "encoder", "input": ["x", "y" * 300_000]}, 413),
        ("/predict/writer?max_tokens=3", ["a", "b"], 200),
        ("/v1/completions", {"model": "writer", "prompt": ["a", "b"], "n": 2, "max_tokens": 3}, 200),
        ("/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": 3, "stream": True}, 200),
        ("/v1/completions", {"model": "writer", "prompt": "a", "max_tokens": 3, "grammar": "nonsense ("}, 400),
        ("/predict/writer?max_tokens=200", {"text": "a " * 5000}, 400),
    ],
)
def test_no_cycle_keeps_an_answered_request(serving: OpenAiServing, path: str, body: Any, status: int) -> None:
    with leaving_nothing():
        for _ in range(2):
            assert post(serving, path, body).status == status


def test_no_cycle_keeps_a_request_whose_client_left(serving: OpenAiServing) -> None:
    with leaving_nothing():
        body = {"model": "writer", "prompt": "a", "max_tokens": 200, "n": 2, "stream": True}
        connection, response = open_stream(serving, "/v1/completions", body)
        response.close()
        connection.close()
