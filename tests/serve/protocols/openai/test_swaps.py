"""Requests beside a swap, vectors in a queue that is full, and requests of several jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.models.text_model import TextModel
from serve.protocols.rows import Call
from serve.protocols.text_models import _waiting, make_vectors, prepare_prompts
from tests.serve.protocols.openai.asking import post
from tests.serve.protocols.openai.conftest import OpenAiServing


class _Asked:
    received_ns = 1


def run(serving: OpenAiServing, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, serving.loop).result(60)


@pytest.mark.parametrize("name", ["narrow", "pooled"])
def test_who_meets_a_model_that_was_replaced_is_answered_by_the_new_one(serving: OpenAiServing, name: str) -> None:
    old = serving.repository.get(name)
    assert isinstance(old, TextModel)
    run(serving, serving.repository.load(name))
    run(serving, old.close())
    new = serving.repository.get(name)
    assert new is not old
    request: Any = _Asked()
    call = Call(serving.service, request, "openai", "r", name)
    if name == "narrow":
        answering, count = run(serving, prepare_prompts(call, old, lambda model: model.count_tokens("a b")))
        assert count == new.count_tokens("a b")
    else:
        answering, vectors, num_tokens = run(serving, make_vectors(call, old, ["a", "b"]))
        assert (len(vectors), num_tokens) == (2, 6)
    assert answering is new


def test_vectors_of_a_full_queue_are_refused_at_once(serving: OpenAiServing) -> None:
    model = serving.repository.get("pooled")
    _waiting[model] = model.spec.max_queue
    try:
        answer = post(serving, "/v1/embeddings", {"model": "pooled", "input": "a"})
    finally:
        del _waiting[model]
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "writer", "prompt": ["a", "b"], "n": 2, "max_tokens": 2}),
        ("/predict/writer?max_tokens=2", ["a", "b", "c"]),
        ("/v1/embeddings", {"model": "encoder", "input": ["a"] * 90}),
    ],
)
def test_a_request_of_several_jobs_is_counted_once(serving: OpenAiServing, path: str, body: Any) -> None:
    def count() -> float:
        lines = serving.service.metrics.render("").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("edgesmith_requests_total{"))

    before = count()
    assert post(serving, path, body).status == 200
    assert count() == before + 1
