"""What cannot be obeyed is refused with the parameter's name, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

import pytest

from serve.config import ModelSpec, ServerConfig
from tests.serve.protocols.openai.asking import error_of, post, value_of
from tests.serve.protocols.openai.conftest import OpenAiServing

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
OPEN_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"pattern": "a+"}}}
ODD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": {}}}}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 2.5}, "temperature", None),
        ({"top_p": 1.5}, "top_p", None),
        ({"top_k": -1}, "top_k", None),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_completion_tokens": 201}, "max_completion_tokens", None),
        ({"n": 17}, "n", None),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"stop": ["a"] * 17}, "stop", None),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream": True, "stream_options": {"x": 1}}, "x", "unknown_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": OPEN_SCHEMA}, "response_format.json_schema.schema", "invalid_json_schema"),
        ({"response_format": ODD_SCHEMA}, "response_format.json_schema.schema", "invalid_json_schema"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"model": None}, "model", "missing_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"model": "news"}, "model", None),
        ({"model": "pooled"}, "model", None),
        ({"messages": None}, "messages", "missing_parameter"),
        ({"messages": "Hello"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", None),
        ({"messages": ["Hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content", "missing_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour", "unsupported_parameter"),
        ({"messages": [*HELLO, {"role": "system", "content": "a"}]}, "messages", None),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "context_length_exceeded"),
    ],
)
def test_chat_refuses_by_name(serving: OpenAiServing, change: dict[str, Any], param: str, code: str | None) -> None:
    error = error_of(serving, CHAT, 400, {"model": "writer", "messages": HELLO, "max_tokens": None} | change)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "word " * 600}, "prompt"),
        ({"prompt": " " * 200_000}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"messages": HELLO}, "messages"),
    ],
)
def test_completions_refuse_by_name(serving: OpenAiServing, change: dict[str, Any], param: str) -> None:
    assert error_of(serving, COMPLETIONS, 400, {"model": "writer", "prompt": "a"} | change)["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a"] * 101}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 5}, "dimensions"),
        ({"model": "news"}, "model"),
        ({"model": "writer"}, "model"),
    ],
)
def test_embeddings_refuse_by_name(serving: OpenAiServing, change: dict[str, Any], param: str) -> None:
    assert error_of(serving, EMBEDDINGS, 400, {"model": "encoder", "input": "a"} | change)["param"] == param


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, EMBEDDINGS])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}', b"[" * 101])
def test_bodies_that_are_no_object_are_refused(serving: OpenAiServing, path: str, body: bytes) -> None:
    assert error_of(serving, path, 400, body)["type"] == "invalid_request_error"


def test_what_says_nothing_of_the_answer_is_ignored(serving: OpenAiServing) -> None:
    asked = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "tools": [],
        "tool_choice": "none",
    }
    asked |= {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "top_p": None, "modalities": ["text"]}
    assert value_of(serving, CHAT, model="writer", messages=HELLO, max_tokens=1, **asked)["choices"]


def test_an_unknown_model_is_not_found(serving: OpenAiServing) -> None:
    error = error_of(serving, CHAT, 404, {"model": "gpt-4", "messages": HELLO})
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    answer = serving.ask("/v1/models/gpt-4")
    assert (answer.status, answer.value["error"]["code"]) == (404, "model_not_found")


def test_refusals_before_the_route_have_the_same_form(serving: OpenAiServing, writer_path: Any) -> None:
    spec = ModelSpec(name="writer", path=writer_path, threads=1)
    with OpenAiServing(ServerConfig(models=(spec,), api_keys=("a-long-enough-key-1",))) as guarded:
        answer = guarded.ask("/v1/models")
        assert answer.status == 401
        assert answer.value["error"]["code"] == "invalid_api_key"
        assert guarded.ask("/v1/models", authorization="Bearer a-long-enough-key-1").status == 200
    large = post(serving, CHAT, b" " * (serving.config.limits.max_body_bytes + 1))
    assert large.status == 413
    assert large.value["error"]["type"] == "invalid_request_error"


def test_what_the_engine_refuses_is_not_counted_as_cancelled(serving: OpenAiServing) -> None:
    def counts() -> dict[str, float]:
        lines = serving.service.metrics.render().decode().splitlines()
        found = [line.rsplit(" ", 1) for line in lines if 'protocol="openai"' in line and "_total{" in line]
        return {name: float(value) for name, value in found if not name.endswith('reason="ok"}')}

    before = counts()
    error_of(serving, CHAT, 400, {"model": "writer", "messages": HELLO, "grammar": "root ::= missing"})
    changed = [name for name, value in counts().items() if value != before.get(name)]
    assert changed
    assert not [name for name in changed if "cancelled" in name]


def test_what_is_refused_is_counted(serving: OpenAiServing) -> None:
    def count() -> int:
        lines = serving.service.metrics.render().decode().splitlines()
        return sum(
            int(float(line.rsplit(" ", 1)[1]))
            for line in lines
            if line.startswith("edgesmith")
            and 'protocol="openai"' in line
            and "bad_request" in line
            and "_total" in line
        )

    before = count()
    error_of(serving, CHAT, 400, {"model": "writer", "messages": HELLO, "n": "two"})
    assert count() == before + 1
