"""OpenAI's client, unmodified and in an environment of its own; and our load generator's idea of these routes."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

import pytest

from bench.load.plan import LoadPlan
from bench.load.protocols import open_checker, prepare_target
from bench.load.protocols.openai import TokenReader
from bench.load.schedule import constant
from tests.serve.protocols.oip.serving import run_client
from tests.serve.protocols.openai.conftest import OpenAiServing

SYNC = """
import json, sys
import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"http://{sys.argv[1]}/v1", api_key="none", max_retries=0)
found = {"models": [model.id for model in client.models.list()], "one": client.models.retrieve("writer").id}
hello = [{"role": "user", "content": "It was the best of times"}]
asked = {"model": "writer", "temperature": 0, "max_tokens": 12}
whole = client.chat.completions.create(messages=hello, logprobs=True, top_logprobs=2, **asked)
found["chat"] = whole.choices[0].message.content
found["usage"] = whole.usage.model_dump()
found["likely"] = len(whole.choices[0].logprobs.content[0].top_logprobs)
counted = {"stream": True, "stream_options": {"include_usage": True}}
with client.chat.completions.create(messages=hello, **counted, **asked) as stream:
    pieces = list(stream)
found["streamed"] = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
found["streamed_usage"] = pieces[-1].usage.model_dump()
completion = client.completions.create(prompt=["the age of", "hope"], logprobs=1, **asked)
found["completion"] = completion.choices[1].text
with client.chat.completions.stream(messages=hello, **asked) as stream:
    found["helper"] = "".join(event.delta for event in stream if event.type == "content.delta")

class Mood(BaseModel):
    is_good: bool
    is_late: bool

parsed = client.chat.completions.parse(messages=hello, response_format=Mood, model="writer", max_tokens=100)
found["parsed"] = parsed.choices[0].message.parsed.model_dump()
packed = client.embeddings.create(model="encoder", input=["Shares fell."]).data[0].embedding
plain = client.embeddings.create(model="encoder", input="Shares fell.", encoding_format="float").data[0].embedding
found["difference"] = max(abs(a - b) for a, b in zip(packed, plain, strict=True))
for name, call in {
    "missing": lambda: client.chat.completions.create(model="gpt", messages=hello),
    "wrong": lambda: client.chat.completions.create(messages=hello, presence_penalty=1, **asked),
    "busy": lambda: client.completions.create(model="narrow", prompt="the", n=9, max_tokens=200),
}.items():
    try:
        call()
    except openai.APIStatusError as error:
        found[name] = [type(error).__name__, error.param, error.code]
found["identity"] = whole._request_id
print(json.dumps(found))
"""
ASYNC = """
import asyncio, json, sys
import openai

async def main():
    async with openai.AsyncOpenAI(base_url=f"http://{sys.argv[1]}/v1", api_key="none") as client:
        async def stream(index):
            asked = {"model": "writer", "prompt": f"number {index}", "max_tokens": 10, "temperature": 0}
            pieces = [piece async for piece in await client.completions.create(stream=True, **asked)]
            whole = await client.completions.create(**asked)
            return ["".join(piece.choices[0].text for piece in pieces), whole.usage.completion_tokens]
        return await asyncio.gather(*(stream(index) for index in range(8)))

print(json.dumps(asyncio.run(main())))
"""


def test_the_synchronous_client_works_unmodified(serving: OpenAiServing) -> None:
    found = run_client(SYNC, serving.address)
    assert {"writer", "encoder"} <= set(found["models"])
    assert found["one"] == "writer"
    assert found["chat"] == found["streamed"] == found["helper"]
    assert found["chat"]
    cached = found["streamed_usage"].pop("prompt_tokens_details"), found["usage"].pop("prompt_tokens_details")
    assert all(details["cached_tokens"] >= 0 for details in cached)
    assert found["streamed_usage"] == found["usage"]
    assert found["likely"] == 2
    assert found["completion"]
    assert set(found["parsed"]) == {"is_good", "is_late"}
    assert found["difference"] < 1e-6
    assert found["missing"] == ["NotFoundError", "model", "model_not_found"]
    assert found["wrong"] == ["BadRequestError", "presence_penalty", "unsupported_parameter"]
    assert found["busy"] == ["RateLimitError", None, "rate_limit_exceeded"]
    assert found["identity"].startswith("req-")


def test_the_asynchronous_client_works_unmodified(serving: OpenAiServing) -> None:
    answers = run_client(ASYNC, serving.address)
    assert len(answers) == 8
    assert all(text and 1 <= num_tokens <= 10 for text, num_tokens in answers)


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/v1", "writer", True),
        ("/v1/completions", "writer", True),
        ("/v1/chat/completions", "writer", False),
        ("/v1/embeddings", "encoder", True),
    ],
)
def test_our_load_generator_takes_every_answer(
    serving: OpenAiServing, tmp_path: Path, path: str, model: str, stream: bool
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": text} if model == "encoder" else {"prompt": text} for text in ("the age of", "It was")]
    if path in ("/v1", "/v1/chat/completions"):
        rows = [{"text": row["prompt"]} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = LoadPlan(
        url=f"http://{serving.address}{path}", shape=constant(1, 1), data=data, model=model, max_tokens=8, stream=stream
    )
    target = prepare_target(plan)
    assert not target.notes
    checker = open_checker(target)
    for index, request in enumerate(target.requests):
        status, body = exchange(serving, request)
        reader = checker.open_stream(index)
        if reader is None:
            checker.check(index, status, lambda _: None, body)
        else:
            reader.feed(body, 1)
            reader.finish()
            assert isinstance(reader, TokenReader)
            assert reader.num_tokens is not None
            assert 1 <= reader.num_tokens <= 8


def exchange(serving: OpenAiServing, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are, and read one answer."""
    with socket.create_connection(serving.http.address, timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()
