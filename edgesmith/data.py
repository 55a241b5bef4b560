"""Data files: rows read as a stream from JSONL, CSV, TSV and plain text, with the line of every fault.

Files are UTF-8, with or without a byte order mark. Nothing is guessed: the extension decides the format.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgesmith.errors import DataError, UsageError
from edgesmith.files import sha256_file, storage_errors

__all__ = [
    "FORMATS",
    "TEXT_FORMATS",
    "Row",
    "check_columns",
    "check_no_nul",
    "data_digest",
    "encoding_mend",
    "read_rows",
    "sample_rows",
]

TEXT_FORMATS = (".txt", ".md", ".text", ".raw")
"""Extensions of plain texts."""
MAX_FIELD_CHARS = 16 * 1024 * 1024
_NUM_LOOKED_AT = 20
"""Rows that tell which columns there are."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    Attributes:
        path: The file.
        line: Where the row starts, from 1.
        values: By column. Strings from CSV and TSV; any JSON value from JSONL.
    """

    path: Path
    line: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self.line}"


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file row by row, in constant memory.

    Args:
        path: A `.jsonl`, `.ndjson`, `.csv` or `.tsv` file. CSV and TSV have a header line; a quoted field may
            hold line breaks. Empty lines are skipped. Each paragraph of a text file (`TEXT_FORMATS`) is a row with
            the column `text`.

    Yields:
        The rows in the file's order.

    Raises:
        DataError: The file is missing, empty, not UTF-8, of another format, or has a broken row; the message
            names the line (and for JSON the column).
        StorageError: The file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such data file", mend="Check the path.")
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(FORMATS))
        raise DataError(f"{path}: {path.suffix or 'no extension'} is not a data format", mend=f"Use {known}.")
    if not path.is_file():
        raise UsageError(f"{path}: no such data file", mend="Check the path.")
    num_rows = 0
    for num_rows, row in enumerate(reader(path), start=1):  # noqa: B007 - counted for the check below
        yield row
    if num_rows == 0:
        raise DataError(f"{path} holds no rows", mend="Give a file with at least one row of data.")


def sample_rows(path: Path, num: int, seed: int) -> list[Row]:
    """Draw rows without replacement, the same ones for the same file and seed on every platform.

    A row's lot is a hash of the seed and its position, and the smallest lots win: so a sample of 10 is part
    of the sample of 20, and memory stays at `num` rows.

    Args:
        path: As for `read_rows`.
        num: How many; the whole file if it has fewer.
        seed: Any integer.

    Returns:
        The drawn rows in the file's order.

    Raises:
        DataError: As for `read_rows`; the whole file is read, so every row of it is checked.
    """
    drawn = heapq.nsmallest(num, enumerate(read_rows(path)), key=lambda item: _lot(seed, item[0]))
    return [row for _, row in sorted(drawn, key=lambda item: item[0])]


def check_columns(path: Path, columns: Mapping[str, str]) -> None:
    """Check that a file has the columns that are named, to judge from its first rows.

    Args:
        path: As for `read_rows`.
        columns: A task's column → the file's.

    Raises:
        DataError: There is no such column; the message names those that there are.
    """
    if not columns:
        return
    known = dict.fromkeys(name for row in islice(read_rows(path), _NUM_LOOKED_AT) for name in row.values)
    for wanted, name in columns.items():
        if name not in known:
            raise DataError(
                f"{path}: there is no column {name!r}; it has {', '.join(map(repr, known))}",
                mend=f"Name the one that holds the {wanted}: --column {wanted}=COLUMN.",
            )


def data_digest(path: Path) -> str:
    """The SHA-256 of a data file, hexadecimal: what a cache key holds of it.

    Raises:
        UsageError: There is no such file.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such data file", mend="Check the path.")
    return sha256_file(Path(path))


def _lot(seed: int, position: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=16).digest()


def _decoded_lines(path: Path) -> Iterator[str]:
    """The file's lines with their line breaks, decoded one by one so that a bad byte has a line number."""
    with storage_errors(path), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8",
                    mend=encoding_mend(raw, path),
                ) from error
            check_no_nul(text, f"{path}:{number}", path)
            yield text


def check_no_nul(text: str, place: str, path: Path) -> None:
    """Refuse what decodes as UTF-8 but is something else: no text holds a NUL.

    Raises:
        DataError: it holds one.
    """
    if "\0" in text:
        raise DataError(
            f"{place}: is no text: it holds NUL bytes",
            mend=f"If it is UTF-16, convert it: iconv -f UTF-16LE -t UTF-8 {path.name}",
        )


def encoding_mend(raw: bytes, path: Path) -> str:
    """Say how a file that is not UTF-8 becomes it.

    Args:
        raw: Its start, or the line that cannot be decoded.
        path: The file.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"The file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
    return f"Save the file as UTF-8, for example: iconv -f LATIN1 -t UTF-8 {path.name}"


def _read_jsonl(path: Path) -> Iterator[Row]:
    for line, text in enumerate(_decoded_lines(path), start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            mend = "JSONL has one complete JSON object on every line."
            if line == 1 and text.strip() in ("[", "{"):
                mend = "This looks like one JSON document over many lines. " + mend
            raise DataError(f"{path}:{line}:{error.colno}: bad JSON: {error.msg}", mend=mend) from error
        except RecursionError as error:
            raise DataError(f"{path}:{line}: JSON nested too deeply", mend="Flatten the row.") from error
        except ValueError as error:
            raise DataError(f"{path}:{line}: {error}", mend="Correct the row.") from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise DataError(
                f"{path}:{line}: the row is a JSON {kind}, not an object",
                mend='Write each row as an object: {"text": "…", "label": "…"}.',
            )
        yield Row(path, line, values)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(_decoded_lines(path), delimiter=delimiter, strict=True)
    csv.field_size_limit(MAX_FIELD_CHARS)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not fields or fields == [""]:
                continue
            if header is None:
                header = _checked_header(path, start, fields)
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}:{start}: {len(fields)} fields, but the header has {len(header)} columns",
                    mend='Put a field that holds the separator, a quote or a line break in "quotes".',
                )
            yield Row(path, start, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: broken row: {error}", mend='Close every quote; write a quote inside as "".'
        ) from error


def _checked_header(path: Path, line: int, fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path}:{line}: column {position} has no name", mend="Name every column.")
        if names.count(name) > 1:
            raise DataError(f"{path}:{line}: two columns are named {name!r}", mend="Rename one of them.")
    return names


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_table(path, "\t")


def _read_paragraphs(path: Path) -> Iterator[Row]:
    lines: list[str] = []
    start = 1
    for number, text in enumerate(_decoded_lines(path), start=1):
        if text.strip():
            start = start if lines else number
            lines.append(text.rstrip("\r\n"))
        elif lines:
            yield Row(path, start, {"text": "\n".join(lines)})
            lines = []
    if lines:
        yield Row(path, start, {"text": "\n".join(lines)})


FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    **dict.fromkeys(TEXT_FORMATS, _read_paragraphs),
}
"""Extension → reader."""
