"""`POST /v1/embeddings`: a vector for each text, from GGUF files that say how they pool, and from ONNX graphs.

Source: OpenAI API reference, "Embeddings".
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.tasks import FeatureExtraction, Task
from serve.http.message import Request, Response
from serve.json_text import dump_json
from serve.models.graph_model import GraphModel
from serve.models.text_model import TextModel
from serve.protocols.identity import answer_headers
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields, wrong_type
from serve.protocols.openai.handling import Asked, Run, json_body, make_call
from serve.protocols.openai.prompts import check_size
from serve.protocols.rows import Call, Input, choose_model, run_inputs, task_of
from serve.protocols.text_models import make_vectors
from serve.service import Service

__all__ = ["embed"]

_ENCODINGS = ("float", "base64")


async def embed(service: Service, request: Request, asked: Asked) -> Run:
    """Read and check a request; what comes back answers it."""
    fields = Fields(
        await json_body(service, request), known={"model", "input", "encoding_format", "dimensions"}, ignored={"user"}
    )
    call = make_call(service, request, fields, asked)
    texts = _texts(fields, service.limits.max_rows)
    encoding = fields.text("encoding_format") or "float"
    if encoding not in _ENCODINGS:
        raise ParameterError(
            f"Invalid value: {encoding[:60]!r}. Supported values are: 'float', 'base64'.",
            param="encoding_format",
            code="invalid_value",
        )
    dimensions = fields.whole("dimensions", 1, 1 << 20)
    model = choose_model(call)
    if isinstance(model, GraphModel):
        if not isinstance(task_of(model), FeatureExtraction):
            raise _no_vectors(call)
    elif not model.can_embed:
        raise _no_vectors(call)
    else:
        for index, text in enumerate(texts):
            check_size(model, len(text), param=f"input[{index}]")

    async def run() -> None:
        answering, vectors, num_tokens = await _vectors(call, model, texts)
        if dimensions is not None and any(len(vector) != dimensions for vector in vectors):
            raise ParameterError(
                f"dimensions is {dimensions}; the vectors of this model have {len(vectors[0])}", param="dimensions"
            )
        body = dump_json(_answer(call.name, vectors, num_tokens, encoding))
        request.respond(Response(body=body, headers=answer_headers(call.identity, answering)))

    return run


def _no_vectors(call: Call) -> ParameterError:
    return ParameterError(
        f"the model {call.name!r} makes no vectors of texts", param="model", mend="Ask a feature-extraction model."
    )


def _texts(fields: Fields, most: int) -> list[str]:
    value = fields.get("input")
    if value is None:
        raise ParameterError("you must provide input", param="input", code="missing_parameter")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise wrong_type("input", value, "a string or a list of strings, not an empty one")
    if type(texts[0]) is int or isinstance(texts[0], list):
        raise ParameterError("inputs of token numbers are not supported by this server; send texts", param="input")
    if len(texts) > most:
        raise ParameterError(f"input has {len(texts)} texts; at most {most} are taken at a time", param="input")
    for index, one in enumerate(texts):
        if not isinstance(one, str):
            raise wrong_type(f"input[{index}]", one, "a string")
        if not one:
            raise ParameterError(f"input[{index}] is an empty text", param=f"input[{index}]", code="invalid_value")
    return texts


async def _vectors(
    call: Call, model: GraphModel | TextModel, texts: Sequence[str]
) -> tuple[GraphModel | TextModel, list[NDArray[np.float32]], int]:
    """Who answered, the vectors, and the tokens that were read for them."""
    if isinstance(model, TextModel):
        return await make_vectors(call, model, texts)
    answering, pairs = await run_inputs(call, model, texts, _reduce)
    return answering, [vector for vector, _ in pairs], sum(count for _, count in pairs)


def _reduce(
    task: Task, outputs: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]], inputs: Sequence[Input]
) -> list[tuple[NDArray[np.float32], int]]:
    del inputs
    counts = arrays["attention_mask"].sum(axis=1)  # padding is no token
    return [(vector, int(count)) for vector, count in zip(task.vectors(outputs, arrays), counts, strict=True)]


def _answer(name: str, vectors: Sequence[NDArray[np.float32]], num_tokens: int, encoding: str) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, encoding)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def _written(vector: NDArray[np.float32], encoding: str) -> Any:
    """Numbers, or the bytes of little-endian float32 in base64, as OpenAI's client asks unless told otherwise."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return np.ascontiguousarray(vector, dtype=np.float32)
