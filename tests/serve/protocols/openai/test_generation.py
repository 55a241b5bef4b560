"""Completions and chat completions, whole and in pieces."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from serve.config import ModelSpec, ServerConfig
from serve.models.text_model import TextModel
from serve.runtime import EngineOptions
from serve.runtime.generation import Sampling
from serve.runtime.gguf_engine import LlamaEngine
from tests.serve.protocols.openai.asking import error_of, events_of, open_stream, pieces, post, value_of, wait_until
from tests.serve.protocols.openai.conftest import OpenAiServing

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"model": "writer", "temperature": 0}
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "It was the best of times"}]
HELLO_PROMPT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIt was the best of times<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def engine(writer_path: Path) -> LlamaEngine:
    return LlamaEngine(writer_path, EngineOptions(threads=1))


def written(engine: LlamaEngine, prompt: str, **settings: Any) -> str:
    return "".join(chunk.text for chunk in engine.generate(prompt, **settings))


def test_texts_are_those_of_the_engine(serving: OpenAiServing, engine: LlamaEngine) -> None:
    answer = value_of(serving, COMPLETIONS, prompt="the age of", max_tokens=12, **GREEDY)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "writer"
    assert answer["choices"][0]["text"] == written(engine, "the age of", max_tokens=12)
    drawn = {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "seed": 7}
    answer = value_of(serving, COMPLETIONS, model="writer", prompt="the age of", max_tokens=12, **drawn)
    assert answer["choices"][0]["text"] == written(engine, "the age of", max_tokens=12, sampling=Sampling(**drawn))


def test_conversations_are_rendered_by_the_models_template(serving: OpenAiServing, engine: LlamaEngine) -> None:
    answer = value_of(serving, CHAT, messages=HELLO, max_completion_tokens=10, **GREEDY)
    message = answer["choices"][0]["message"]
    assert answer["object"] == "chat.completion"
    assert message["role"] == "assistant"
    assert message["content"] == written(engine, HELLO_PROMPT, max_tokens=10)
    assert answer["usage"]["prompt_tokens"] == engine.count_prompt_tokens(HELLO_PROMPT)
    in_parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}]
    again = value_of(serving, CHAT, messages=[*in_parts, HELLO[1]], max_tokens=10, **GREEDY)
    assert again["choices"][0]["message"] == message


@pytest.mark.parametrize(("path", "asked"), [(COMPLETIONS, {"prompt": "the age of"}), (CHAT, {"messages": HELLO})])
def test_pieces_of_a_stream_are_the_whole_answer(serving: OpenAiServing, path: str, asked: dict[str, Any]) -> None:
    body = GREEDY | asked | {"max_tokens": 15, "n": 2}
    whole = value_of(serving, path, **body)
    events = events_of(post(serving, path, body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 30
    assert all(event["usage"] is None for event in events[:-1])
    for index, choice in enumerate(whole["choices"]):
        mine = list(pieces(events, index))
        if path == CHAT:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(piece["delta"].get("content", "") for piece in mine)
        else:
            text = "".join(piece["text"] for piece in mine)
        assert text == choice.get("text", choice.get("message", {}).get("content"))
        assert [piece["finish_reason"] for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_several_prompts_and_choices_come_in_order_and_are_counted(serving: OpenAiServing, engine: LlamaEngine) -> None:
    prompts = ["the age of", "It was", "hope"]
    answer = value_of(serving, COMPLETIONS, prompt=prompts, n=2, max_tokens=4, echo=True, model="writer", seed=3)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert all(text.startswith(prompts[index // 2]) for index, text in enumerate(texts))
    assert answer["usage"]["prompt_tokens"] == sum(engine.count_prompt_tokens(prompt) for prompt in prompts)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 24


def test_seeds_decide_and_without_one_every_answer_is_drawn_anew(serving: OpenAiServing) -> None:
    def text(**settings: Any) -> str:
        answer = value_of(serving, COMPLETIONS, model="writer", prompt="the age of", max_tokens=24, **settings)
        return str(answer["choices"][0]["text"])

    assert text(seed=-5) == text(seed=-5) != text(seed=6)
    assert text() != text()
    both = value_of(serving, COMPLETIONS, model="writer", prompt="the age of", max_tokens=24, n=2, seed=6)["choices"]
    assert both[0]["text"] != both[1]["text"]


def test_an_answer_ends_before_a_stop_string(serving: OpenAiServing) -> None:
    whole = value_of(serving, COMPLETIONS, prompt="the age of", max_tokens=20, **GREEDY)["choices"][0]["text"]
    stop = whole[8:11]
    for given in (stop, ["never there", stop]):
        choice = value_of(serving, COMPLETIONS, prompt="the age of", max_tokens=20, stop=given, **GREEDY)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == whole[: whole.index(stop)]


def test_log_probabilities_stand_beside_the_tokens(serving: OpenAiServing) -> None:
    asked = GREEDY | {"prompt": "the age of", "max_tokens": 8}
    choice = value_of(serving, COMPLETIONS, logprobs=2, **asked)["choices"][0]
    found = choice["logprobs"]
    assert [len(found[name]) for name in found] == [8] * 4
    assert [len(top) for top in found["top_logprobs"]] == [2] * 8
    for token, logprob, top, offset in zip(*(found[name] for name in found), strict=True):
        assert max(top, key=top.__getitem__) == token
        assert top[token] == logprob
        assert logprob <= 0
        assert choice["text"][offset:].startswith(token) or token.startswith("bytes:\\x")
    events = events_of(post(serving, COMPLETIONS, asked | {"logprobs": 0, "stream": True}))
    streamed = [piece["logprobs"] for piece in pieces(events) if piece["logprobs"]]
    assert [token for one in streamed for token in one["tokens"]] == found["tokens"]
    assert [place for one in streamed for place in one["text_offset"]] == found["text_offset"]


def test_log_probabilities_of_a_conversation_have_bytes(serving: OpenAiServing) -> None:
    asked = GREEDY | {"messages": HELLO, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    choice = value_of(serving, CHAT, **asked)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 6
    spelled = b"".join(bytes(one["bytes"]) for one in content).decode(errors="replace")
    assert spelled.startswith(choice["message"]["content"])  # a character that is not complete is not shown
    assert choice["message"]["content"]
    assert all(len(one["top_logprobs"]) == 3 for one in content)
    events = events_of(post(serving, CHAT, asked | {"stream": True}))
    streamed = [one for piece in pieces(events) if piece["logprobs"] for one in piece["logprobs"]["content"]]
    assert [one["bytes"] for one in streamed] == [one["bytes"] for one in content]
    assert [one["logprob"] for one in streamed] == pytest.approx([one["logprob"] for one in content], abs=1e-4)
    assert (
        value_of(serving, CHAT, **asked | {"logprobs": False, "top_logprobs": None})["choices"][0]["logprobs"] is None
    )


SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "is_late": {"type": "boolean"},
        "name": {"type": "string", "maxLength": 4},
    },
    "required": ["mood", "is_late", "name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_answers_keep_to_a_schema_whatever_the_model_would_say(serving: OpenAiServing, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}}
    asked = {"model": "writer", "messages": HELLO, "seed": seed, "max_tokens": 100}
    choice = value_of(serving, CHAT, response_format=form, **asked)["choices"][0]
    assert choice["finish_reason"] == "stop"
    value = json.loads(choice["message"]["content"])
    assert list(value) == SCHEMA["required"]
    assert value["mood"] in ("good", "bad")
    assert isinstance(value["is_late"], bool)
    assert len(value["name"]) <= 4
    free = value_of(serving, CHAT, response_format={"type": "json_object"}, **asked)["choices"][0]
    assert free["message"]["content"].lstrip().startswith("{")


def test_an_answer_of_unsaid_length_gets_its_share(serving: OpenAiServing) -> None:
    chosen = value_of(serving, CHAT, messages=HELLO, stop=None, **GREEDY)
    assert 16 < chosen["usage"]["completion_tokens"] <= serving.config.limits.max_tokens
    assert value_of(serving, COMPLETIONS, prompt="the", **GREEDY)["usage"]["completion_tokens"] <= 16


def test_versions_are_asked_by_name(serving: OpenAiServing) -> None:
    listed = [entry["id"] for entry in serving.ask("/v1/models").value["data"]]
    assert {"writer", "writer:1", "writer:2", "news", "pooled"} <= set(listed)
    assert "news:1" not in listed
    assert serving.ask("/v1/models/writer:1").value["id"] == "writer:1"
    assert serving.ask("/v1/models/writer:3").status == 404
    for version in ("1", "2"):
        body = GREEDY | {"model": f"writer:{version}", "prompt": "the", "max_tokens": 2}
        answer = post(serving, COMPLETIONS, body, x_request_id="mine-7")
        assert answer.headers["x-model-version"] == version
        assert answer.headers["x-request-id"] == "mine-7"


def test_a_client_that_leaves_frees_its_slot(serving: OpenAiServing) -> None:
    body = {"model": "narrow", "prompt": "the age of", "max_tokens": 200, "stream": True, "logit_bias": {}}
    model = serving.repository.get("narrow")
    assert isinstance(model, TextModel)
    for _ in range(3):
        connection, response = open_stream(serving, COMPLETIONS, body)
        assert response.readline().startswith(b"data: ")
        response.close()
        connection.close()
        wait_until(lambda: model.num_running == 0)
    tokens = value_of(serving, COMPLETIONS, model="narrow", prompt="the", max_tokens=3)["usage"]["completion_tokens"]
    assert tokens <= 3


def test_a_full_queue_is_told_as_too_many_requests(serving: OpenAiServing) -> None:
    body = {"model": "narrow", "prompt": "the age of", "max_tokens": 200, "n": 1}
    error = error_of(serving, COMPLETIONS, 429, body | {"n": 8})  # one is written, one waits
    assert (error["type"], error["code"]) == ("rate_limit_exceeded", "rate_limit_exceeded")
    assert int(post(serving, COMPLETIONS, body | {"n": 8}).headers["retry-after"]) >= 1
    model = serving.repository.get("narrow")
    assert isinstance(model, TextModel)
    wait_until(lambda: model.num_running == model.num_waiting == 0)  # what was begun of it is dropped


def test_a_failure_in_the_middle_is_told_by_an_event(writer_path: Path) -> None:
    spec = ModelSpec(name="writer", path=writer_path, threads=1)
    with OpenAiServing(ServerConfig(models=(spec,))) as serving:
        body = {"model": "writer", "prompt": "the age of", "max_tokens": 400, "stream": True, "temperature": 0}
        body |= {"grammar": 'root ::= "a"{400}'}  # an answer that does not end by itself
        connection, response = open_stream(serving, COMPLETIONS, body)
        first = response.readline()
        assert json.loads(first.removeprefix(b"data: "))["choices"]
        closing = threading.Thread(target=lambda: serving.call(serving.repository.get("writer").close(0)))
        closing.start()
        rest = response.read()
        closing.join()
        connection.close()
    events = [json.loads(event.removeprefix(b"data: ")) for event in rest.strip().split(b"\n\n")]
    assert events[-1]["error"]["type"] == "server_error"
    assert all("error" not in event for event in events[:-1])
    assert b"[DONE]" not in rest
