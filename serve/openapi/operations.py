"""What each route is for: method and pattern → operation. A route that is not here is described by its path alone."""

from __future__ import annotations

from collections.abc import Mapping

from serve.openapi.parts import BINARY, EVENTS, JSON, Operation, Schema, array, ref, text, whole

__all__ = ["OPERATIONS"]

_SERVER, _OIP, _OPENAI, _TASK, _TRAFFIC, _ADMIN = (
    "Server",
    "Open Inference Protocol",
    "OpenAI",
    "Tasks",
    "Traffic",
    "Administration",
)
_STICKY = {"x-edgesmith-key": text("Requests of one key are answered by one version.")}
_NAMED = {"x-request-id": text("The client's name of the request; the answer has it too."), **_STICKY}
_NOT_YET = {503: "Not ready, or the queue is full."}


def _json(name: str) -> dict[str, Schema]:
    return {JSON: ref(name)}


_SYSTEM = {
    "GET /": Operation(summary="The page", tag=_SERVER, answers={"text/html": text()}),
    "GET /metrics": Operation(
        summary="Metrics for Prometheus",
        tag=_SERVER,
        answers={"text/plain": text(), "application/openmetrics-text": text()},
        description="Prometheus' text, or OpenMetrics where `Accept` asks for it.",
    ),
    "GET /live.json": Operation(summary="Figures of the last minute", tag=_SERVER, answers=_json("Live")),
    "GET /models.json": Operation(summary="What is served", tag=_SERVER, answers=_json("Models")),
    "GET /openapi.json": Operation(summary="This document", tag=_SERVER, answers={JSON: {"type": "object"}}),
    "GET /healthz": Operation(
        summary="Whether requests are welcome", tag=_SERVER, answers=_json("Ready"), statuses={503: "They are not."}
    ),
}

_INFER = Operation(
    summary="Infer",
    tag=_OIP,
    body={
        JSON: ref("InferRequest"),
        BINARY: text(
            "With the binary tensor extension: JSON as above, of the length that `Inference-Header-Content-Length` "
            "says, in which inputs have the parameter `binary_data_size` in place of data; behind it their bytes, "
            "little-endian and row-major, in the inputs' order.",
            format="binary",
        ),
    },
    headers={
        "Inference-Header-Content-Length": whole(0, description="Bytes of JSON at the body's begin; without it all."),
        **_STICKY,
    },
    answers={
        JSON: ref("InferAnswer"),
        BINARY: text(
            "Where outputs are asked for as binary: JSON of the length that the header "
            "`Inference-Header-Content-Length` says, behind it the outputs' bytes.",
            format="binary",
        ),
    },
    statuses=_NOT_YET,
    description="Tensors as the model has them; a model with a task takes texts as BYTES too.",
)


def _of_model(prefix: str) -> dict[str, Operation]:
    return {
        f"GET {prefix}": Operation(summary="Tensors of a model", tag=_OIP, answers=_json("ModelMetadata")),
        f"GET {prefix}/ready": Operation(
            summary="Whether a model answers", tag=_OIP, answers=_json("ModelReady"), statuses={503: "It does not."}
        ),
        f"GET {prefix}/config": Operation(
            summary="A model's configuration, in Triton's words", tag=_OIP, answers=_json("ModelConfig")
        ),
        f"GET {prefix}/stats": Operation(summary="A model's statistics", tag=_OIP, answers=_json("ModelStatistics")),
        f"POST {prefix}/infer": _INFER,
    }


def _shared_memory(kind: str) -> dict[str, Operation]:
    refusal = {400: "This server maps no memory of its clients."}
    found: dict[str, Operation] = {}
    for region in ("", "/region/{region}"):
        found[f"GET /v2/{kind}{region}/status"] = Operation(
            summary="Regions of shared memory: none", tag=_OIP, answers={JSON: array({})}
        )
        found[f"POST /v2/{kind}{region}/unregister"] = Operation(
            summary="Forget a region of shared memory", tag=_OIP, answers={JSON: {"type": "object"}}
        )
    found[f"POST /v2/{kind}/region/{{region}}/register"] = Operation(
        summary="Share memory: always refused", tag=_OIP, answers={}, statuses=refusal
    )
    return found


_OPEN_INFERENCE = {
    "GET /v2": Operation(summary="Name and extensions of the server", tag=_OIP, answers=_json("ServerMetadata")),
    "GET /v2/health/live": Operation(summary="Whether the server lives", tag=_OIP, answers={JSON: {"type": "object"}}),
    "GET /v2/health/ready": Operation(
        summary="Whether requests are welcome", tag=_OIP, answers=_json("Ready"), statuses={503: "They are not."}
    ),
    "GET /v2/models/stats": Operation(summary="Statistics of all models", tag=_OIP, answers=_json("ModelStatistics")),
    "POST /v2/repository/index": Operation(
        summary="Every version of every model",
        tag=_OIP,
        body=_json("IndexRequest"),
        is_body_required=False,
        query={"ready": text("`true` leaves out what is not ready.")},
        answers=_json("RepositoryIndex"),
    ),
    **{
        f"POST /v2/repository/models/{{model}}/{verb}": Operation(
            summary=summary,
            tag=_ADMIN,
            body=_json("LoadRequest"),
            is_body_required=False,
            answers={JSON: {"type": "object"}},
            statuses=_NOT_YET,
        )
        for verb, summary in (("load", "Load a model, or load it again"), ("unload", "Take a model out"))
    },
    **_of_model("/v2/models/{model}"),
    **_of_model("/v2/models/{model}/versions/{version}"),
    **_shared_memory("systemsharedmemory"),
    **_shared_memory("cudasharedmemory"),
}

_WRITES = {**_NOT_YET, 429: "The queue is full; `Retry-After` says when to try again."}
_OPENAI_ROUTES = {
    "GET /v1/models": Operation(summary="Models", tag=_OPENAI, answers=_json("OpenAIModels")),
    "GET /v1/models/{model}": Operation(summary="One model", tag=_OPENAI, answers=_json("OpenAIModel")),
    "POST /v1/completions": Operation(
        summary="Continue a text",
        tag=_OPENAI,
        body=_json("CompletionRequest"),
        headers=_NAMED,
        answers={JSON: ref("CompletionAnswer"), EVENTS: text()},
        statuses=_WRITES,
    ),
    "POST /v1/chat/completions": Operation(
        summary="Answer in a conversation",
        tag=_OPENAI,
        body=_json("ChatRequest"),
        headers=_NAMED,
        answers={JSON: ref("ChatAnswer"), EVENTS: text()},
        statuses=_WRITES,
    ),
    "POST /v1/embeddings": Operation(
        summary="Vectors of texts",
        tag=_OPENAI,
        body=_json("EmbeddingRequest"),
        headers=_NAMED,
        answers=_json("EmbeddingAnswer"),
        statuses=_WRITES,
    ),
}

_TRAFFIC_ROUTES = {
    "POST /v2/models/{model}/feedback": Operation(
        summary="Judge an answer", tag=_TRAFFIC, body=_json("Feedback"), answers=_json("FeedbackTaken")
    ),
    "GET /v2/models/{model}/traffic": Operation(
        summary="Shares and comparisons of a model's versions", tag=_TRAFFIC, answers=_json("Traffic")
    ),
    "POST /v2/models/{model}/traffic": Operation(
        summary="Change the shares", tag=_ADMIN, body=_json("Weights"), answers=_json("Traffic")
    ),
}

_PREDICT = Operation(
    summary="Labels, vectors or texts, without a client",
    tag=_TASK,
    body={
        "text/plain": text("One text."),
        JSON: ref("PredictRows"),
        "application/x-ndjson": text("One row a line."),
        "text/csv": text("A header row, then one row a line."),
        "image/*": text("A picture's file.", format="binary"),
    },
    query={
        "top": whole(1, 999_999, "So many labels, the likeliest first."),
        # Other models pass over them, whatever they are.
        "max_tokens": text("Of a language model: a whole number."),
        "temperature": text("Of a language model: a number."),
        "seed": text("Of a language model: a whole number."),
    },
    headers=_NAMED,
    answers={JSON: ref("Predictions"), "text/plain": text("One line a row, where `Accept` asks for it first.")},
    statuses=_NOT_YET,
)
_TASKS = {f"POST /predict/{{model}}{version}": _PREDICT for version in ("", "/versions/{version}")}

OPERATIONS: Mapping[str, Operation] = {**_SYSTEM, **_OPEN_INFERENCE, **_OPENAI_ROUTES, **_TASKS, **_TRAFFIC_ROUTES}
