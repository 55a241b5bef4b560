"""Schemas of what is sent and answered, by protocol."""

from __future__ import annotations

from collections.abc import Mapping

from serve.openapi.parts import Schema, array, maybe, named, number, record, ref, text, whole
from serve.protocols.oip.tensors import DATATYPES, MAX_RANK

__all__ = ["all_schemas"]

_PARAMETERS: Schema = {"type": ["object", "null"], "description": "Settings; unknown ones are passed over."}
_DATATYPE = text("Of the Open Inference Protocol.", enum=list(DATATYPES))
_SHAPE = array(whole(1), maxItems=MAX_RANK)
_DATA: Schema = {"type": "array", "description": "Values in row-major order, nested as the shape is or flat."}
_TENSOR = record({"name": text(), "datatype": text(), "shape": array(whole())})
_DURATION = record({"count": whole(0), "ns": whole(0)})

OIP: Mapping[str, Schema] = {
    "OipError": record({"error": text()}),
    "ServerMetadata": record({"name": text(), "version": text(), "extensions": array(text())}),
    "ModelMetadata": record(
        {
            "name": text(),
            "versions": array(text()),
            "platform": text(),
            "inputs": array(_TENSOR),
            "outputs": array(_TENSOR),
        }
    ),
    "ModelConfig": record({"name": text(), "platform": text(), "max_batch_size": whole(0)}),
    "ModelReady": record({"name": text(), "ready": {"type": "boolean"}}),
    "ModelStatistics": record(
        {
            "model_stats": array(
                record(
                    {
                        "name": text(),
                        "version": text(),
                        "last_inference": whole(0, description="Milliseconds since the epoch."),
                        "inference_count": whole(0),
                        "execution_count": whole(0),
                        "inference_stats": named(_DURATION),
                        "batch_stats": array(record({"batch_size": whole(1)})),
                    }
                )
            )
        }
    ),
    "InferRequest": record(
        {
            "inputs": array(
                record(
                    {"name": text(), "datatype": _DATATYPE, "shape": _SHAPE},
                    {"data": _DATA, "parameters": _PARAMETERS},
                ),
                minItems=1,
            )
        },
        {
            "id": text("Given back with the answer."),
            "parameters": _PARAMETERS,
            "outputs": {"type": ["array", "null"], "items": record({"name": text()}, {"parameters": _PARAMETERS})},
        },
    ),
    "InferAnswer": record(
        {
            "model_name": text(),
            "model_version": text(),
            "outputs": array(
                record(
                    {"name": text(), "datatype": text(), "shape": array(whole(0))},
                    {"data": {"type": "array"}, "parameters": _PARAMETERS},
                )
            ),
        },
        {"id": text()},
    ),
    "RepositoryIndex": array(record({"name": text(), "version": text(), "state": text(), "reason": text()})),
    "IndexRequest": record({}, {"ready": {"type": "boolean"}}),
    "LoadRequest": record({}, {"parameters": _PARAMETERS}),
}

_MESSAGE = record(
    {"role": text(enum=["system", "developer", "user", "assistant", "tool"])},
    {"content": {"anyOf": [text(), array(record({"type": text()})), {"type": "null"}]}},
)
_USAGE = record({"prompt_tokens": whole(0), "total_tokens": whole(0)}, {"completion_tokens": whole(0)})
_CHOICE = {"index": whole(0), "finish_reason": maybe(text()), "logprobs": {"type": ["object", "null"]}}
_ANSWER = {"id": text(), "object": text(), "created": whole(0), "model": text()}


def _sampling(max_tokens: int) -> dict[str, Schema]:
    return {
        "temperature": maybe(number(0, 2)),
        "top_p": maybe(number(0, 1)),
        "top_k": maybe(whole(0, 2**31 - 1)),
        "min_p": maybe(number(0, 1)),
        "repeat_penalty": maybe(number(0.01, 100)),
        "seed": maybe(whole(-(2**63), 2**63 - 1)),
        "n": maybe(whole(1, 16)),
        "stop": {"anyOf": [text(), array(text()), {"type": "null"}]},
        "stream": maybe({"type": "boolean"}),
        "stream_options": maybe(record({}, {"include_usage": maybe({"type": "boolean"})})),
        "max_tokens": maybe(whole(1, max_tokens)),
        "grammar": maybe(text("What the answer follows, in llama.cpp's notation (GBNF).")),
        "user": maybe({}),
    }


_MODEL = text("`name`, or `name:version`.", minLength=1)

OPENAI: Mapping[str, Schema] = {
    "OpenAIError": record(
        {"error": record({"message": text(), "type": text(), "param": maybe(text()), "code": maybe(text())})}
    ),
    "OpenAIModel": record({"id": text(), "object": text(), "created": whole(0), "owned_by": text()}),
    "OpenAIModels": record({"object": text(), "data": array(ref("OpenAIModel"))}),
    "CompletionAnswer": record(
        {**_ANSWER, "choices": array(record({**_CHOICE, "text": text()})), "usage": _USAGE},
    ),
    "ChatAnswer": record(
        {
            **_ANSWER,
            "choices": array(record({**_CHOICE, "message": record({"role": text(), "content": maybe(text())})})),
            "usage": _USAGE,
        }
    ),
    "EmbeddingRequest": record(
        {"model": _MODEL, "input": {"anyOf": [text(minLength=1), array(text(minLength=1), minItems=1)]}},
        {
            "encoding_format": maybe(text(enum=["float", "base64"])),
            "dimensions": maybe(whole(1, 1 << 20)),
            "user": maybe({}),
        },
        additionalProperties=False,
    ),
    "EmbeddingAnswer": record(
        {
            "object": text(),
            "model": text(),
            "usage": _USAGE,
            "data": array(
                record(
                    {
                        "object": text(),
                        "index": whole(0),
                        "embedding": {"anyOf": [array(maybe(number())), text("Little-endian float32 in base64.")]},
                    }
                )
            ),
        }
    ),
}


def _requests(max_tokens: int) -> dict[str, Schema]:
    """Requests whose bounds are the server's."""
    return {
        "CompletionRequest": record(
            {"model": _MODEL, "prompt": {"anyOf": [text(), array(text(), minItems=1)]}},
            {**_sampling(max_tokens), "logprobs": maybe(whole(0, 5)), "echo": maybe({"type": "boolean"})},
            additionalProperties=False,
        ),
        "ChatRequest": record(
            {"model": _MODEL, "messages": array(_MESSAGE, minItems=1)},
            {
                **_sampling(max_tokens),
                "max_completion_tokens": maybe(whole(1, max_tokens)),
                "logprobs": maybe({"type": "boolean"}),
                "top_logprobs": maybe(whole(0, 20)),
                "response_format": maybe(record({"type": text(enum=["text", "json_object", "json_schema"])})),
            },
            additionalProperties=False,
        ),
    }


_FIGURES = {
    "answered": whole(0),
    "failures": named(whole(0)),
    "answered_per_s": maybe(number(0)),
    "p50_ms": maybe(number(0)),
    "p99_ms": maybe(number(0)),
    "durations": array(whole(0)),
    "tokens": whole(0),
    "tokens_per_s": maybe(number(0)),
}
_VERSION = {"name": text(), "version": text(), "state": text(), "reason": text()}

_ROW: Schema = {
    "anyOf": [
        text(),
        {"type": "object", "description": "With the task's columns, such as `text` and `text_pair`, or `image`."},
    ]
}

SYSTEM: Mapping[str, Schema] = {
    "Error": record({"error": text()}),
    "Ready": record({"ready": {"type": "boolean"}}),
    "Live": record(
        {
            "now_s": number(),
            "window_s": number(0),
            "uptime_s": number(0),
            "is_draining": {"type": "boolean"},
            "process": record({"cpu_s": number(0)}),
            "all": record(_FIGURES),
            "models": array(record({**_VERSION, **_FIGURES})),
        }
    ),
    "Models": record({"models": array(record(_VERSION))}),
    "PredictError": record({"error": text(), "reason": text()}),
    "PredictRows": {
        "anyOf": [
            _ROW,
            array(_ROW, minItems=1),
            record({"instances": array(_ROW, minItems=1)}),
        ]
    },
    "Predictions": record(
        {"model": text(), "version": text(), "predictions": array({"type": "object"})},
    ),
    "Feedback": {
        "oneOf": [
            record({"id": text(minLength=1), "correct": {"type": "boolean"}}, additionalProperties=False),
            record({"id": text(minLength=1), "score": number(0, 1)}, additionalProperties=False),
        ]
    },
    "FeedbackTaken": record({"id": text(), "version": text()}),
    "Traffic": record({"model": text(), "versions": named({"type": "object"})}),
    "Weights": record({"weights": named(number(0))}),
}


def all_schemas(max_tokens: int) -> dict[str, Schema]:
    """Name → schema.

    Args:
        max_tokens: Of one answer, at most.
    """
    return {**SYSTEM, **OIP, **OPENAI, **_requests(max_tokens)}
