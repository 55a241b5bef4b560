"""`POST /predict/{model}`: labels, vectors and texts for people without a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import EdgesmithError
from edgesmith.tasks import Example, ImageClassification, Prediction, Task
from serve.config import Limits
from serve.errors import MalformedError
from serve.http.failures import tell_failure
from serve.http.message import Request, Response
from serve.http.router import Route
from serve.json_text import dump_json
from serve.models.graph_model import GraphModel
from serve.protocols.identity import answer_headers, request_id
from serve.protocols.predict_rows import PredictRow, read_body
from serve.protocols.predict_texts import generate_rows, read_writing
from serve.protocols.rows import Call, ClientGoneError, Input, choose_model, run_inputs, task_of
from serve.protocols.workers import LARGE_BODY_BYTES, workers
from serve.service import Service

__all__ = ["routes"]

PROTOCOL = "predict"
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
_OPTIONS = frozenset({"max_tokens", "temperature", "seed", "top"})


def routes(service: Service) -> list[Route]:
    """The routes below `/predict`."""

    async def handle(request: Request) -> None:
        await _predict(service, request)

    return [
        Route("POST", pattern, handle, access="user", protocol=PROTOCOL, error_body=error_body)
        for pattern in ("/predict/{model}", "/predict/{model}/versions/{version}")
    ]


def error_body(status: int, reason: str, message: str) -> Response:
    """Answer with an error: what is wrong, and what to do about it."""
    headers = ((b"retry-after", b"1"),) if reason == "queue_full" else ()
    return Response(status=status, body=dump_json({"error": message, "reason": reason}), headers=headers)


async def _predict(service: Service, request: Request) -> None:
    name = request.params["model"]
    call = Call(service, request, PROTOCOL, request_id(request), name, request.params.get("version"))
    try:
        options = _read_options(request.query)
        writing = read_writing(options, service.limits.max_tokens)
        model = choose_model(call)
        rows = await _read_rows(request, service.limits)
        inputs = _inputs(task_of(model), rows) if isinstance(model, GraphModel) else []
    except EdgesmithError as error:
        service.failed(name, PROTOCOL, error, received_ns=request.received_ns)
        _fail(request, error)
        return
    try:
        if isinstance(model, GraphModel):
            answering, predictions = await run_inputs(call, model, inputs, _decode)
            _respond(call, answering, predictions, options)
        else:
            _respond(call, model, await generate_rows(call, model, rows, writing), options)
    except ClientGoneError:
        return
    except EdgesmithError as error:
        _fail(request, error)


async def _read_rows(request: Request, limits: Limits) -> list[PredictRow]:
    if len(request.body) > LARGE_BODY_BYTES:
        return await workers().run(lambda: read_body(request, limits))
    return read_body(request, limits)


def _read_options(query: str) -> dict[str, str]:
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise MalformedError(f"the query is damaged: {error}") from error
    if unknown := sorted(options.keys() - _OPTIONS):
        raise MalformedError(
            f"there is no option {unknown[0][:60]!r}", mend=f"Known are {', '.join(sorted(_OPTIONS))}."
        )
    top = options.get("top", "1")
    if not (top.isascii() and top.isdigit() and 1 <= len(top) <= 6 and int(top)):
        raise MalformedError(f"top is {top[:60]!r}; it must be a whole number of at least 1")
    return options


def _inputs(task: Task, rows: Sequence[PredictRow]) -> list[Input]:
    """What the task encodes.

    Raises:
        MalformedError: A row is of another kind, such as a picture for a model of texts.
        DataError: A row has not the columns that the task knows.
    """
    return [_input(task, row, number) for number, row in enumerate(rows, start=1)]


def _input(task: Task, row: PredictRow, number: int) -> Input:
    if isinstance(task, ImageClassification):
        if isinstance(row, bytes):
            return row
        raise MalformedError(
            f"row {number} is no picture",
            mend='Send the file itself (curl --data-binary @photo.jpg), or {"image": "base64 of it"}.',
        )
    match row:
        case bytes():
            raise MalformedError(f"row {number} is a picture; this model reads texts", mend="Send a text.")
        case str():
            return Example(row)
        case _:
            return _parsed(task, row, number)


def _parsed(task: Task, row: dict[str, Any], number: int) -> Example:
    """A row with the task's columns; what a row of JSON leaves null is not there."""
    values = {name: value for name, value in row.items() if value is not None}
    return task.parse(Row(Path("row"), number, values), labelled=False)


def _decode(task: Task, outputs: Arrays, arrays: Arrays, inputs: Sequence[Input]) -> list[Prediction]:
    decode: Callable[..., list[Prediction]] = task.decode
    return decode(outputs, arrays, inputs)


def _respond(call: Call, model: Any, predictions: list[Prediction], options: Mapping[str, str]) -> None:
    headers = answer_headers(call.identity, model)
    accept = call.request.header(b"accept") or b""
    if accept.split(b",")[0].split(b";")[0].strip().lower() == b"text/plain":
        lines = "".join(_line(prediction) + "\n" for prediction in predictions)
        call.request.respond(Response(body=lines.encode(), content_type=b"text/plain; charset=utf-8", headers=headers))
        return
    if "top" in options:
        predictions = [_cut(prediction, int(options["top"])) for prediction in predictions]
    answer = {"model": model.name, "version": model.version, "predictions": predictions}
    call.request.respond(Response(body=dump_json(answer), headers=headers))


def _cut(prediction: Prediction, top: int) -> Prediction:
    """The likeliest labels only, likeliest first."""
    scores = prediction.get("scores")
    if not isinstance(scores, dict):
        return prediction
    return prediction | {"scores": dict(sorted(scores.items(), key=lambda item: -item[1])[:top])}


def _line(prediction: Prediction) -> str:
    """A prediction for eyes and shell scripts: label and score, numbers, entities, or the text."""
    match prediction:
        case {"label": label, "score": score}:
            return f"{label}\t{score:.6f}"
        case {"similarity": similarity}:
            return f"{similarity:.6f}"
        case {"embedding": embedding}:
            return "\t".join(f"{value:.7g}" for value in embedding)
        case {"entities": entities}:
            return "\t".join(f"{one['label']} {' '.join(one['text'].split())}" for one in entities)
    return str(prediction["text"])


def _fail(request: Request, error: EdgesmithError) -> None:
    request.respond(error_body(*tell_failure(error)))
