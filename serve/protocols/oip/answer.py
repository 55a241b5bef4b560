"""The answer to an inference request: which tensors, and as which bytes.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md ("Inference Response JSON Object");
triton-inference-server/server, docs/protocol/extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UsageError
from serve.http.message import Buffer, Response
from serve.json_text import dump_json
from serve.protocols.oip.described import Described
from serve.protocols.oip.inference import Inference, OutputWish
from serve.protocols.oip.tensors import bytes_of_array, datatype_of, json_of_array

__all__ = ["make_response", "pick_outputs"]

Outputs = Mapping[str, NDArray[Any]]

_BINARY = b"application/octet-stream"
_MAX_ANSWERS = 256


def pick_outputs(
    outputs: Outputs, wishes: Sequence[OutputWish], labels: Sequence[str]
) -> list[tuple[OutputWish, NDArray[Any]]]:
    """Give the outputs that a client asked for, in its order, as it asked for them.

    Raises:
        UsageError: There is no such output, or it has no classes.
    """
    picked: list[tuple[OutputWish, NDArray[Any]]] = []
    for wish in wishes:
        array = outputs.get(wish.name)
        if array is None:
            raise UsageError(f"there is no output {wish.name[:80]!r}", mend=f"There are {', '.join(outputs)}.")
        picked.append((wish, classify(wish, array, labels) if wish.num_classes else array))
    return picked


def classify(wish: OutputWish, array: NDArray[Any], labels: Sequence[str]) -> NDArray[Any]:
    """Give the best classes of each row as texts `score:index`, with `:label` where labels are known.

    Args:
        wish: How many.
        array: One score a class, of shape [..., classes]; [n] is n rows of one.
        labels: By index.

    Returns:
        Texts of shape [rows, classes asked for]; more than there are give all.

    Raises:
        UsageError: The output holds no numbers.
    """
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise UsageError(f"the output {wish.name!r} has no classes", mend="Ask for it without `classification`.")
    scores = array.reshape(len(array), -1)  # [rows, classes]
    count = min(wish.num_classes, scores.shape[1])
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]
    names = [f":{label}" for label in labels] if len(labels) == scores.shape[1] else [""] * scores.shape[1]
    texts = np.empty(order.shape, np.object_)
    for row, best in enumerate(order.tolist()):
        texts[row] = [f"{scores[row, index]:f}:{index}{names[index]}" for index in best]
    return texts


def make_response(
    described: Described,
    inference: Inference,
    outputs: Outputs,
    identity: str,
    *,
    is_text: bool = False,
    is_named: bool = False,
) -> Response:
    """Write the answer: JSON, and behind it the bytes of the tensors that go as bytes, none of them copied.

    Args:
        described: The model.
        inference: What was asked.
        outputs: What there is to answer with.
        identity: What the request is called, by its client or by us.
        is_text: Whether the outputs are those of texts.
        is_named: Whether the model was asked by its name for texts.

    Raises:
        UsageError: An output is asked for that does not exist.
    """
    request_header = (b"x-request-id", identity.encode())
    if inference.outputs is None and inference.is_binary and not inference.id and not is_text:
        return _make_plain(described, outputs, request_header)
    heads = described.text_heads if is_text else described.heads
    entries: list[bytes] = []
    buffers: list[Buffer] = [b""]
    if inference.outputs is None:
        for name, array in outputs.items():
            _add(entries, buffers, heads[name], array, is_binary=inference.is_binary)
    else:
        for wish, array in pick_outputs(outputs, inference.outputs, described.labels):
            head = heads[wish.name] if not wish.num_classes else entry_head(wish.name, array)
            is_binary = inference.is_binary if wish.is_binary is None else wish.is_binary
            _add(entries, buffers, head, array, is_binary=is_binary)
    buffers[0] = b'{%b%b,"outputs":[%b]}' % (
        described.text_head if is_named else described.head,
        b',"id":' + dump_json(inference.id) if inference.id else b"",
        b",".join(entries),
    )
    if len(buffers) == 1:
        return Response(200, buffers[0], headers=(*described.headers, request_header))
    return Response(200, buffers, _BINARY, (*described.headers, request_header, _length_header(buffers[0])))


def _make_plain(described: Described, outputs: Outputs, request_header: tuple[bytes, bytes]) -> Response:
    """Answer with all outputs as bytes: what most requests ask for, and the JSON is the same for the same shapes."""
    buffers: list[Buffer] = [b""]
    key: list[tuple[int, ...]] = []
    for array in outputs.values():
        data = bytes_of_array(array)
        buffers.append(data)
        key.append((len(data), *array.shape))
    known = described.answers.get(tuple(key))
    if known is None:
        entries = [
            _binary_entry(described.heads[name], array, len(data))
            for (name, array), data in zip(outputs.items(), buffers[1:], strict=True)
        ]
        text = b'{%b,"outputs":[%b]}' % (described.head, b",".join(entries))
        known = text, (*described.headers, _length_header(text))
        if len(described.answers) >= _MAX_ANSWERS:
            described.answers.clear()
        described.answers[tuple(key)] = known
    buffers[0], headers = known
    return Response(200, buffers, _BINARY, (*headers, request_header))


def _length_header(text: Buffer) -> tuple[bytes, bytes]:
    return b"inference-header-content-length", b"%d" % len(text)


def _binary_entry(head: bytes, array: NDArray[Any], size: int) -> bytes:
    return b'%b%b,"parameters":{"binary_data_size":%d}}' % (head, _shape(array), size)


def _shape(array: NDArray[Any]) -> bytes:
    return str(list(array.shape)).encode()


def entry_head(name: str, array: NDArray[Any]) -> bytes:
    """The begin of an output's entry, up to its shape."""
    return b'{"name":%b,"datatype":"%b","shape":' % (dump_json(name), datatype_of(array.dtype.name).encode())


def _add(entries: list[bytes], buffers: list[Buffer], head: bytes, array: NDArray[Any], *, is_binary: bool) -> None:
    if is_binary:
        data = bytes_of_array(array)
        buffers.append(data)
        entries.append(_binary_entry(head, array, len(data)))
    else:
        entries.append(b'%b%b,"data":%b}' % (head, _shape(array), json_of_array(array)))
