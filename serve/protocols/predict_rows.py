"""Bodies of `/predict` as rows: plain text, JSON, JSON lines, CSV and TSV, pictures."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl

from edgesmith.errors import DataError
from edgesmith.tasks.image_pixels import sniff_image
from serve.config import Limits
from serve.errors import MalformedError, TooLargeError
from serve.http.message import Buffer, Request
from serve.json_text import parse_json
from serve.protocols.workers import LARGE_BODY_BYTES

__all__ = ["PredictRow", "read_body"]

PredictRow = str | dict[str, Any] | bytes
"""A text, a row with columns, or a picture's file."""

_MEND = (
    'Send one text as text/plain, JSON such as {"text": "…"} or a list of these, application/x-ndjson, text/csv with '
    "a header row, or a picture's file."
)
_TABLES = {"text/csv": ",", "text/tab-separated-values": "\t"}
_JSON_LINES = frozenset(
    {"application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines"}
)
_FORM = "application/x-www-form-urlencoded"
_UNSAID = frozenset({"", "application/octet-stream", _FORM, "*/*"})
_MAX_FIELDS = 64
_MAX_TEXT_BYTES = 16 << 20  # pictures alone, which are only copied, may be larger
_MAX_BLANK_LINES = 4096
_MAX_VALUES = 1 << 20


def read_body(request: Request, limits: Limits) -> list[PredictRow]:
    """Turn a request's body into rows.

    Where the type is not said, or is the one that curl sends unasked, a picture is known by its first bytes and JSON by
    its bracket; everything else is one text.

    Raises:
        MalformedError: The body is not what its type says; the message has the row.
        TooLargeError: It has more rows than the server takes.
    """
    if not len(request.body):
        raise MalformedError("the body is empty", mend=_MEND)
    kind, charset = _content_type(request)
    if kind.startswith("image/"):
        return [bytes(request.body)]
    if kind in _UNSAID and sniff_image(memoryview(request.body)[:16]) is not None:
        return [bytes(request.body)]
    if len(request.body) > _MAX_TEXT_BYTES:
        raise TooLargeError(
            f"the body has {len(request.body):,} bytes; of texts at most {_MAX_TEXT_BYTES:,} are taken",
            mend="Send it in several requests.",
        )
    if kind == "application/json" or kind.endswith("+json"):
        return _rows_of_json(request.body, limits)
    text = _decoded(request, charset)
    if kind in _TABLES:
        return _bounded(_table_rows(text, _TABLES[kind], limits), limits)
    if kind in _JSON_LINES:
        return _bounded(_line_rows(text, limits), limits)
    if kind in _UNSAID and text.lstrip()[:1] in ("{", "["):
        return _rows_of_json(request.body, limits)
    if kind == _FORM and text.startswith(("text=", "text_pair=")):
        return [dict(_form_fields(text))]
    if kind == "text/plain" or kind in _UNSAID:
        return [text]
    raise MalformedError(f"a body of the type {kind[:100]!r} is not known here", mend=_MEND)


def _content_type(request: Request) -> tuple[str, str]:
    """The type in lower case, and how its text is written."""
    message = Message()
    message["content-type"] = (request.header(b"content-type") or b"").decode("latin-1")
    stated = message.get_param("charset", "utf-8")
    given = message["content-type"].partition(";")[0].strip().lower()
    return given, stated if isinstance(stated, str) else "utf-8"


def _decoded(request: Request, charset: str) -> str:
    if charset.lower().replace("_", "-") not in ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"):
        raise MalformedError(f"a body in {charset[:40]!r} is not read", mend="Send UTF-8.")
    try:
        text = bytes(request.body).decode("utf-8-sig" if charset.lower().startswith(("u", "a")) else "latin-1")
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"the body is neither a picture nor text: byte 0x{request.body[error.start]:02x} at {error.start} is not "
            "UTF-8",
            mend="Convert it: iconv -f LATIN1 -t UTF-8",
        ) from error
    if "\0" in text:
        raise MalformedError("the body holds NUL bytes, which no text does", mend=_MEND)
    if not text.strip():
        raise MalformedError("the body holds nothing but blanks", mend=_MEND)
    return text


def _form_fields(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise MalformedError(f"the form is damaged: {error}") from error


def _rows_of_json(body: Buffer, limits: Limits) -> list[PredictRow]:
    """A row, a list of rows, or `{"instances": [rows]}`."""
    if len(body) > LARGE_BODY_BYTES and bytes(body).count(b",") > _MAX_VALUES:
        raise TooLargeError(f"the JSON holds more than {_MAX_VALUES:,} commas", mend="Send it in several requests.")
    value = parse_json(body, max_depth=limits.max_json_depth)
    if isinstance(value, dict) and "instances" in value:
        value = value["instances"]
        if not isinstance(value, list):
            raise MalformedError('"instances" is not a list', mend='Send {"instances": ["…", "…"]}.')
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise MalformedError("the list holds no rows", mend=_MEND)
    return _bounded((_json_row(row, index) for index, row in enumerate(rows, start=1)), limits)


def _json_row(row: Any, number: int) -> PredictRow:
    if not isinstance(row, (str, dict)):
        raise MalformedError(f"row {number} is {row!r:.60}, neither a text nor an object", mend=_MEND)
    if isinstance(row, dict):
        for name in ("image", "b64"):
            if isinstance(row.get(name), str):
                return _picture(row[name], number)
    return row


def _picture(text: str, number: int) -> bytes:
    """A picture in base64, or in a data URL of it."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"row {number}: the picture is no base64: {error}") from error


def _line_rows(text: str, limits: Limits) -> Iterator[PredictRow]:
    if text.count("\n") > limits.max_rows + _MAX_BLANK_LINES:
        raise _too_many_lines(limits)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = parse_json(line.encode(), max_depth=limits.max_json_depth)
            except MalformedError as error:
                raise MalformedError(
                    f"line {number}: {error.message.removeprefix('the body ')}",
                    mend="JSON lines have one whole value on every line.",
                ) from error
            yield _json_row(value, number)


def _too_many_lines(limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {limits.max_rows} rows, or more than {_MAX_BLANK_LINES} empty lines",
        mend="Send it in several requests, without empty lines.",
    )


def _table_rows(text: str, delimiter: str, limits: Limits) -> Iterator[PredictRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    num_blank = 0
    try:
        for fields in reader:
            if not fields or fields == [""]:
                num_blank += 1
                if num_blank > _MAX_BLANK_LINES:
                    raise _too_many_lines(limits)
                continue
            if not header:
                header = [name.strip() for name in fields]
                if "" in header or len(set(header)) < len(header):
                    raise MalformedError(f"the header {header!r:.200} has a column without a name, or one twice")
                continue
            if len(fields) != len(header):
                raise MalformedError(
                    f"line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} columns",
                    mend='Put a field that holds the separator, a quote or a line break in "quotes".',
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise MalformedError(
            f"line {reader.line_num}: {error}", mend="Close every quote, and double inner ones."
        ) from (error)


def _bounded(rows: Iterator[PredictRow], limits: Limits) -> list[PredictRow]:
    found: list[PredictRow] = []
    for row in rows:
        if len(found) == limits.max_rows:
            raise TooLargeError(
                f"the request has more than {limits.max_rows} rows", mend="Send it in several requests."
            )
        found.append(row)
    if not found:
        raise DataError("the body holds no rows", mend=_MEND)
    return found
