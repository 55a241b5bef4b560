"""An inference request, whatever carried it, and how one is read from an HTTP body.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md ("Inference Request JSON Object");
triton-inference-server/server, docs/protocol/extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError
from serve.config import Limits
from serve.errors import MalformedError
from serve.http.message import Buffer
from serve.json_text import LongLists, parse_json, parse_long_json
from serve.protocols.oip.tensors import (
    array_from_bytes,
    array_from_list,
    array_from_pieces,
    check_shape,
    check_size,
    dtype_of,
)

__all__ = [
    "Inference",
    "InferenceReader",
    "OutputWish",
    "check_id",
    "check_parameters",
    "deadline_of",
    "read_classes",
    "read_timeout",
]

_NO_PARAMETERS: Mapping[str, Any] = {}
_MAX_TIMEOUT_US = 10**12
_MAX_KNOWN, _MAX_KNOWN_BYTES = 256, 4096
_MAX_ID_CHARS = 128


@dataclass(slots=True)
class OutputWish:
    """One output that the client wants.

    Attributes:
        name: Of the output.
        is_binary: Whether as bytes behind the JSON; None leaves it to the request.
        num_classes: If above 0, the best so many as texts `score:index:label` in place of the values.
    """

    name: str
    is_binary: bool | None = None
    num_classes: int = 0


@dataclass(slots=True)
class Inference:
    """What a client asks for.

    Attributes:
        arrays: By input name; texts are arrays of objects.
        outputs: What it wants back; None wants all outputs.
        id: Given back with the answer; empty without one.
        is_binary: Whether outputs go back as bytes that say nothing else.
        timeout_us: How long it may take; 0 leaves it to the model.
    """

    arrays: dict[str, NDArray[Any]]
    outputs: Sequence[OutputWish] | None = None
    id: str = ""
    is_binary: bool = False
    timeout_us: int = 0


class InferenceReader:
    """Reads the bodies of requests, and remembers the JSON of binary ones: clients send the same one again and again.

    Args:
        limits: The most that is read.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._known: dict[bytes, _Head] = {}

    def read(self, body: Buffer, json_length: bytes | None = None) -> Inference:
        """Read the body of a request.

        Args:
            body: JSON, with the bytes of tensors behind it if `json_length` is given.
            json_length: The header `Inference-Header-Content-Length`.

        Raises:
            MalformedError: It is not what the protocol says.
            TooLargeError: An input has too many rows.
            UnsupportedError: It asks for something that this server does not do.
        """
        if json_length is None:
            return _join(read_head(body, self.limits), body, len(body))
        begin = _read_length(json_length, len(body))
        text = bytes(body[:begin])
        known = self._known.get(text)
        return _join(known if known is not None else self._learn(text), body, begin)

    def read_long(self, body: Buffer, json_length: bytes | None = None) -> Inference:
        """Read as `read`, on any thread, and so that other threads have their turns meanwhile."""
        begin = len(body) if json_length is None else _read_length(json_length, len(body))
        message, lists = parse_long_json(
            body if begin == len(body) else body[:begin], max_depth=self.limits.max_json_depth
        )
        head = _read_message(message, self.limits, lists)
        lists.check()
        return _join(head, body, begin)

    def _learn(self, text: bytes) -> _Head:
        head = read_head(text, self.limits)
        if len(text) <= _MAX_KNOWN_BYTES and all(part.array is None for part in head.inputs):
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[text] = head
        return head


@dataclass(frozen=True, slots=True)
class _Part:
    """An input: its array, or where it lies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: NDArray[Any] | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Head:
    """What the JSON of a request says."""

    inputs: tuple[_Part, ...]
    num_bytes: int
    outputs: Sequence[OutputWish] | None
    id: str
    is_binary: bool
    timeout_us: int


def _join(head: _Head, body: Buffer, begin: int) -> Inference:
    """Put together what the JSON says and the bytes behind it."""
    if head.num_bytes != len(body) - begin:
        raise MalformedError(
            f"the inputs have {head.num_bytes} bytes by their binary_data_size, and {len(body) - begin} bytes are "
            "behind the JSON",
            mend="Send the length of the JSON in the header Inference-Header-Content-Length.",
        )
    arrays = {}
    for part in head.inputs:
        if part.array is not None:
            arrays[part.name] = part.array
        else:
            arrays[part.name] = array_from_bytes(part.name, part.datatype, part.shape, body, begin, part.size)
            begin += part.size
    return Inference(arrays, head.outputs, head.id, head.is_binary, head.timeout_us)


def read_head(text: Buffer, limits: Limits) -> _Head:
    """Read the JSON of a request; see `InferenceReader.read`."""
    return _read_message(parse_json(text, max_depth=limits.max_json_depth), limits, None)


def _read_message(message: object, limits: Limits, lists: LongLists | None) -> _Head:
    if type(message) is not dict:
        raise MalformedError("the body is no JSON object", mend='Send {"inputs": […]}.')
    parameters = _parameters(message, "request")
    inputs = _read_inputs(message.get("inputs"), limits, lists)
    return _Head(
        inputs,
        sum(part.size for part in inputs),
        _read_outputs(message.get("outputs")),
        check_id(message.get("id", "")),
        _flag(parameters, "binary_data_output") or False,
        read_timeout(parameters),
    )


def check_id(identifier: object) -> str:
    """Give a request's id, which is kept for as long as somebody may say how good its answer was.

    Raises:
        MalformedError: It is no text, too long, or not fit for a header and a log.
    """
    if type(identifier) is not str or len(identifier) > _MAX_ID_CHARS or not identifier.isprintable():
        raise MalformedError(f"the id of a request is a text of at most {_MAX_ID_CHARS} printable characters")
    return identifier


def deadline_of(received_ns: int, timeout_us: int) -> int | None:
    """When a request is no longer wanted, on `time.monotonic_ns`; None leaves it to the model."""
    return received_ns + 1000 * timeout_us if timeout_us else None


def read_timeout(parameters: Mapping[str, Any]) -> int:
    """The parameter `timeout`, in µs; 0 without one.

    Raises:
        MalformedError: It is no positive number.
    """
    timeout_us = parameters.get("timeout", 0)
    if type(timeout_us) is not int or timeout_us < 0:
        raise MalformedError(f"timeout is {str(timeout_us)[:40]!r}; it is a whole number of microseconds")
    return min(timeout_us, _MAX_TIMEOUT_US)


def check_parameters(what: str, parameters: Mapping[str, Any]) -> None:
    """Refuse tensors in shared memory.

    Raises:
        UnsupportedError: The parameters name a region.
    """
    if "shared_memory_region" in parameters:
        raise UnsupportedError(
            f"{what} is in shared memory, which this server does not map", mend="Send it with the request."
        )


def _read_length(value: bytes, body_length: int) -> int:
    if not value.isdigit() or len(value) > 12 or int(value) > body_length:
        raise MalformedError(
            f"Inference-Header-Content-Length is {value[:20]!r} with a body of {body_length} bytes",
            mend="It is the number of bytes of the JSON at the body's begin.",
        )
    return int(value)


def _parameters(holder: dict[str, Any], what: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return _NO_PARAMETERS
    if type(parameters) is not dict:
        raise MalformedError(f"the parameters of the {what} are no object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise MalformedError(f"{name} is {str(value)[:40]!r}; it is true or false")
    return value


def _read_inputs(inputs: object, limits: Limits, lists: LongLists | None) -> tuple[_Part, ...]:
    if type(inputs) is not list or not inputs:
        raise MalformedError("the request has no inputs", mend='Send {"inputs": […]}.')
    parts: dict[str, _Part] = {}
    for entry in inputs:
        if type(entry) is not dict:
            raise MalformedError("an input is no object", mend='Send {"name", "shape", "datatype", "data"}.')
        name = entry.get("name")
        if type(name) is not str or name in parts:
            raise MalformedError("every input needs a name of its own")
        parts[name] = _read_input(name, entry, limits, lists)
    return tuple(parts.values())


def _read_input(name: str, entry: dict[str, Any], limits: Limits, lists: LongLists | None) -> _Part:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    dtype = dtype_of(name, datatype)
    count = check_shape(name, shape, limits.max_rows)
    assert isinstance(datatype, str)
    assert isinstance(shape, list)
    parameters = _parameters(entry, "input")
    if "binary_data_size" not in parameters:
        check_parameters(f"the input {name!r}", parameters)
        data = entry.get("data")
        pieces = None if lists is None else lists.pieces(data)
        if pieces is None:
            array = array_from_list(name, datatype, shape, count, data)
        else:
            array = array_from_pieces(name, datatype, shape, count, pieces)
        return _Part(name, datatype, tuple(shape), array)
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise MalformedError(f"binary_data_size of {name!r} is {str(size)[:40]}; it is a number of bytes")
    if "data" in entry:
        raise MalformedError(f"the input {name!r} has both data and binary_data_size")
    if dtype.kind != "O":
        check_size(name, datatype, shape, size)
    return _Part(name, datatype, tuple(shape), size=size)


def _read_outputs(outputs: object) -> Sequence[OutputWish] | None:
    if not outputs and (outputs is None or type(outputs) is list):
        return None
    if type(outputs) is not list:
        raise MalformedError("the outputs are no list")
    wishes: dict[str, OutputWish] = {}
    for entry in outputs:
        name = entry.get("name") if type(entry) is dict else None
        if type(name) is not str or name in wishes:
            raise MalformedError("every output that is asked for needs a name of its own")
        parameters = _parameters(entry, "output")
        check_parameters(f"the output {name!r}", parameters)
        wishes[name] = OutputWish(name, _flag(parameters, "binary_data"), read_classes(parameters))
    return tuple(wishes.values())


def read_classes(parameters: Mapping[str, Any]) -> int:
    """The parameter `classification`; 0 without one.

    Raises:
        MalformedError: It is no positive number.
    """
    num_classes = parameters.get("classification", 0)
    if type(num_classes) is not int or num_classes < 0:
        raise MalformedError(f"classification is {str(num_classes)[:40]!r}; it is how many classes are wanted")
    return num_classes
