"""No request that one client can make holds up the loop, and with it everybody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.serve.protocols.openai.asking import post
from tests.serve.protocols.openai.conftest import OpenAiServing

MOST_S = 0.6  # of seconds without this; machines that run tests have other things to do
CHAT = b'{"model":"writer","max_tokens":1,"messages":[{"role":"user","content":%b}]%b}'
SCHEMA = b',"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"enum":[%b0]}}}'


@contextmanager
def short_stalls(serving: OpenAiServing) -> Iterator[None]:
    stalls = [0.0]

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            stalls.append(time.monotonic() - before)

    watching = asyncio.run_coroutine_threadsafe(watch(), serving.loop)
    yield
    watching.cancel()
    assert max(stalls) < MOST_S


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/v1/chat/completions", "application/json", CHAT % (b'"a"', b" " * (5 << 20)), 413),
        ("/v1/chat/completions", "application/json", CHAT % (b'"a"', SCHEMA % (b"1," * 1_900_000)), 400),
        ("/v1/chat/completions", "application/json", CHAT % (b'[%b""]' % (b"{}," * 1_000_000), b""), 400),
        ("/v1/completions", "application/json", b'{"model":"writer","prompt":[%b1]}' % (b"1," * 2_000_000), 400),
        ("/v1/embeddings", "application/json", b'{"model":"encoder","input":[%b1]}' % (b"1," * 4_000_000), 400),
        ("/predict/encoder", "application/x-ndjson", b"\n" * (15 << 20) + b'"a"', 413),
        ("/predict/encoder", "text/csv", b"text\n" + b"\n" * (15 << 20) + b"a", 413),
        ("/predict/encoder", "application/json", b"[%b1]" % (b"1," * (6 << 20)), 413),
        ("/predict/encoder", "text/plain", b"a" * (17 << 20), 413),
    ],
    ids=["size", "schema", "parts", "prompts", "inputs", "blank-lines", "blank-csv", "values", "text"],
)
def test_a_large_request_does_not_hold_up_the_others(
    serving: OpenAiServing, path: str, kind: str, body: bytes, status: int
) -> None:
    with short_stalls(serving):
        answer = post(serving, path, body, content_type=kind)
    assert answer.status == status, answer.body[:500]


def test_errors_are_one_line(serving: OpenAiServing) -> None:
    for path in ("/predict/news", "/v1/completions"):
        answer = post(serving, path, b"")
        assert answer.status == 400
        assert "→" not in answer.body.decode()
        assert "\\n" not in answer.body.decode()


@pytest.mark.parametrize("option", ["max_tokens=no", "max_tokens=0", "temperature=x", "temperature=nan", "seed=a"])
def test_bad_options_are_refused_of_every_model(serving: OpenAiServing, option: str) -> None:
    assert post(serving, f"/predict/news?{option}", b'"a"').status == 400
