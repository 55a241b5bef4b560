"""OpenAI's HTTP interface: completions, chat completions and embeddings, as many servers speak it.

Source: OpenAI API reference (`/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`, streaming).
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.load.plan import LoadPlan
from bench.load.probe import Server
from bench.load.protocols.base import AnswerError, Header, check_status, read_json_object
from bench.load.protocols.events import EventParser
from bench.load.rows import sampled_rows, text_of
from bench.load.target import Target, make_request
from edgesmith.data import Row
from edgesmith.errors import DataError, ServerError, UsageError

__all__ = ["OpenAiChecker", "TokenReader", "is_openai_path", "prepare_openai"]

_OPERATIONS = ("/chat/completions", "/completions", "/embeddings")
_WITH_USAGE = {"stream_options": {"include_usage": True}}
_REFUSED = (http.client.BAD_REQUEST, http.client.UNPROCESSABLE_ENTITY, http.client.NOT_IMPLEMENTED)
_FINISHED = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})


def is_openai_path(path: str) -> bool:
    """Whether a path is one of this interface."""
    return path.endswith((*_OPERATIONS, "/v1"))


def prepare_openai(plan: LoadPlan, server: Server, path: str) -> Target:
    """Find the model and make the requests.

    Args:
        plan: The load.
        server: To ask.
        path: The base (`…/v1`) or one of the operations.

    Raises:
        ServerError: The server lists no model.
        UsageError: It does not have the one asked for.
        DataError: The data file is damaged or a row has no text.
    """
    if plan.binary is not None:
        raise UsageError("tensors as bytes or as JSON: OpenAI's interface has no tensors", mend="Leave it out.")
    operation = next((suffix for suffix in _OPERATIONS if path.endswith(suffix)), None)
    base = path if operation is None else path.removesuffix(operation)
    operation = operation or "/chat/completions"
    model, notes = _find_model(plan, server, base)
    rows, row_notes = sampled_rows(plan)
    if operation == "/embeddings":
        bodies = _embedding_bodies(plan, rows, model)
    else:
        bodies = [_generation_body(plan, row, model, is_chat=operation == "/chat/completions") for row in rows]
    is_stream = plan.stream and operation != "/embeddings"
    if is_stream:
        if _counts_tokens(server, base + operation, bodies[0]):
            bodies = [body | _WITH_USAGE for body in bodies]
        else:
            notes = (*notes, "the server refuses stream_options: pieces of text are counted, not tokens")
    accept = "text/event-stream" if is_stream else "application/json"
    return Target(
        protocol="openai",
        address=server.address,
        path=base + operation,
        requests=tuple(
            make_request(
                server.address,
                base + operation,
                json.dumps(body, allow_nan=False).encode(),
                content_type="application/json",
                headers=plan.headers,
                accept=accept,
            )
            for body in bodies
        ),
        num_rows=tuple(plan.batch_size if operation == "/embeddings" else 1 for _ in bodies),
        contract={"operation": operation, "is_stream": is_stream},
        payload=f"{len(bodies)} {'streamed ' if is_stream else ''}requests to {operation}"
        + ("" if operation == "/embeddings" else f", at most {plan.max_tokens} tokens each"),
        server={"model": model},
        notes=notes + row_notes,
    )


def _counts_tokens(server: Server, path: str, body: Mapping[str, Any]) -> bool:
    """Whether a server takes the wish for the number of tokens: False only where it refuses just that."""
    short = dict(body) | {"max_tokens": 1}
    asked = server.post_status(path, short | _WITH_USAGE)
    return asked not in _REFUSED or server.post_status(path, short) != http.client.OK


def _find_model(plan: LoadPlan, server: Server, base: str) -> tuple[str, tuple[str, ...]]:
    found = server.get(f"{base}/models")
    entries = found.value.get("data") if found.is_ok else None
    listed = (
        [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        if isinstance(entries, list)
        else []
    )
    if plan.model is not None:
        if listed and plan.model not in listed:
            raise UsageError(f"the server has no model {plan.model!r}", mend=f"It lists {', '.join(listed)}.")
        return plan.model, ()
    if not listed:
        raise ServerError(
            f"{server.address.base}: {found.summary} lists no model", mend="Check the URL, or name it: --model NAME."
        )
    notes = (f"the server lists {len(listed)} models; {listed[0]} was asked",) if len(listed) > 1 else ()
    return listed[0], notes


def _generation_body(plan: LoadPlan, row: Row, model: str, *, is_chat: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "max_tokens": plan.max_tokens, "temperature": 0, "seed": plan.seed}
    if plan.stream:
        body["stream"] = True
    if not is_chat:
        return body | {"prompt": text_of(row, "prompt", plan, is_only=True)}
    messages = row.values.get(plan.columns.get("messages", "messages"))
    if messages is None:
        messages = [{"role": "user", "content": text_of(row, "text", plan, is_only=True)}]
    elif not isinstance(messages, list) or not all(isinstance(part, dict) and "role" in part for part in messages):
        raise DataError(f"{row.place}: messages is no list of objects with a role")
    return body | {"messages": messages}


def _embedding_bodies(plan: LoadPlan, rows: Sequence[Row], model: str) -> list[dict[str, Any]]:
    texts = [text_of(row, "text", plan, is_only=True) for row in rows]
    size = plan.batch_size
    if len(texts) < size:
        raise DataError(f"{len(texts)} rows are fewer than the {size} of one request", mend="Give more rows.")
    return [
        {"model": model, "input": texts[begin : begin + size] if size > 1 else texts[begin]}
        for begin in range(0, len(texts) - size + 1, size)
    ]


class OpenAiChecker:
    """Checks answers: text that ended for a reason, or one finite vector for each input.

    Args:
        contract: The target's.
        num_rows: Of each request.
    """

    def __init__(self, contract: Mapping[str, Any], num_rows: Sequence[int]) -> None:
        self.is_stream = bool(contract["is_stream"])
        self.is_embedding = contract["operation"] == "/embeddings"
        self.num_rows = num_rows
        self._length: int | None = None

    def open_stream(self, index: int) -> TokenReader | None:
        """Give a reader of tokens if they come one by one."""
        del index
        return TokenReader() if self.is_stream else None

    def check(self, index: int, status: int, header: Header, body: bytes) -> None:
        """Check one answer; see `Checker`."""
        del header
        check_status(status, body)
        message = read_json_object(body)
        if self.is_embedding:
            self._check_vectors(message, self.num_rows[index])
            return
        choice = _first_choice(message)
        if choice is None:
            raise AnswerError("wrong answer", f"no choices: {str(message)[:200]}")
        if not _text_of_choice(choice):
            raise AnswerError("no token", "the text is empty")
        if choice.get("finish_reason") not in _FINISHED:
            raise AnswerError("finish_reason", f"it is {choice.get('finish_reason')!r}")

    def _check_vectors(self, message: Mapping[str, Any], num_rows: int) -> None:
        data = message.get("data")
        if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
            raise AnswerError("wrong answer", f"no data: {str(message)[:200]}")
        if len(data) != num_rows:
            raise AnswerError("wrong shape", f"{len(data)} vectors for {num_rows} texts")
        for entry in data:
            vector = entry.get("embedding")
            if not isinstance(vector, list) or not vector or not set(map(type, vector)) <= {float, int}:
                raise AnswerError("wrong answer", f"the embedding is {str(vector)[:80]}")
            self._length = self._length or len(vector)
            if len(vector) != self._length:
                raise AnswerError("wrong shape", f"a vector of {len(vector)} numbers; the first had {self._length}")


class TokenReader:
    """Reads one streamed answer and notes when each piece of text came, and how many tokens the server counted."""

    def __init__(self) -> None:
        self.token_ns: list[int] = []
        self.num_tokens: int | None = None
        self._events = EventParser()
        self._error: AnswerError | None = None
        self._finish_reason: Any = None
        self._is_done = False

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take the next bytes, cut anywhere."""
        if self._error is not None:
            return
        try:
            for event in self._events.feed(data):
                self._take(event, now_ns)
        except AnswerError as error:
            self._error = error
        except UnicodeDecodeError as error:
            self._error = AnswerError("not JSON", f"an event is not UTF-8: {error}")

    def _take(self, event: str, now_ns: int) -> None:
        if event == "[DONE]":
            self._is_done = True
            return
        chunk = read_json_object(event.encode())
        if chunk.get("error"):
            raise AnswerError("error in the stream", str(chunk["error"])[:300])
        usage = chunk.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if type(counted) is int and counted > 0:
            self.num_tokens = counted
        choice = _first_choice(chunk)
        if choice is None:
            return  # such as the last one, which holds the usage
        if _text_of_choice(choice):
            self.token_ns.append(now_ns)
        if choice.get("finish_reason") is not None:
            self._finish_reason = choice["finish_reason"]

    def finish(self) -> None:
        """Say that the answer is over; see `StreamReader`."""
        if self._error is not None:
            raise self._error
        if self._finish_reason is None:
            what = "it ended with [DONE] and" if self._is_done else f"it ended after {len(self.token_ns)} tokens and"
            raise AnswerError("stream ended early", f"{what} gave no finish_reason")
        if self._finish_reason not in _FINISHED:
            raise AnswerError("finish_reason", f"it is {self._finish_reason!r}")
        if not self.token_ns:
            raise AnswerError("no token", "the stream held no text")


def _first_choice(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = message.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice: Mapping[str, Any] = choices[0]
    return choice


def _text_of_choice(choice: Mapping[str, Any]) -> bool:
    """Whether a choice, whole or a piece of one, holds text, thought or a call of a tool."""
    part = choice.get("delta") or choice.get("message")
    if isinstance(part, dict):
        return bool(part.get("content") or part.get("reasoning_content") or part.get("tool_calls"))
    return bool(choice.get("text"))
