"""Messages of inference ↔ what the protocols share.

Source: kserve/open-inference-protocol, specification/protocol/inference_grpc.md ("Inference", "Tensor Data").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.config import Limits
from serve.errors import MalformedError
from serve.protocols.grpc.messages import message_class
from serve.protocols.oip.answer import pick_outputs
from serve.protocols.oip.inference import Inference, OutputWish, check_id, check_parameters, read_classes, read_timeout
from serve.protocols.oip.tensors import (
    DATATYPES,
    array_from_bytes,
    check_shape,
    check_size,
    datatype_of,
    dtype_of,
    pack_texts,
    texts_of,
)

__all__ = ["make_message", "read_message"]

_INTS, _UINTS = "int_contents", "uint_contents"
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": _INTS,
    "INT16": _INTS,
    "INT32": _INTS,
    "INT64": "int64_contents",
    "UINT8": _UINTS,
    "UINT16": _UINTS,
    "UINT32": _UINTS,
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_Response = message_class("ModelInferResponse")


def read_message(message: Any, limits: Limits) -> Inference:
    """Read a `ModelInferRequest`.

    Raises:
        MalformedError: It is not what the protocol says.
        TooLargeError: An input has too many rows.
        UnsupportedError: It asks for something that this server does not do.
    """
    raw = message.raw_input_contents
    if not message.inputs:
        raise MalformedError("the request has no inputs")
    if raw and len(raw) != len(message.inputs):
        raise MalformedError(f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    arrays: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(message.inputs):
        name, shape = tensor.name, list(tensor.shape)
        if not name or name in arrays:
            raise MalformedError("every input needs a name of its own")
        dtype = dtype_of(name, tensor.datatype)
        count = check_shape(name, shape, limits.max_rows)
        check_parameters(f"the input {name!r}", tensor.parameters)
        if raw:
            if tensor.HasField("contents"):
                raise MalformedError(f"the input {name!r} has both contents and raw_input_contents")
            data = raw[index]
            if dtype.kind != "O":
                check_size(name, tensor.datatype, shape, len(data))
            arrays[name] = array_from_bytes(name, tensor.datatype, shape, data, 0, len(data))
        else:
            arrays[name] = _read_contents(name, tensor, count).reshape(shape)
    timeout_us = read_timeout(_plain(message.parameters))
    return Inference(arrays, _read_wishes(message.outputs), check_id(message.id), timeout_us=timeout_us)


def _read_contents(name: str, tensor: Any, count: int) -> NDArray[Any]:
    datatype = tensor.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        raise MalformedError(f"the input {name!r} is {datatype}, which has no contents", mend="Send it raw.")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled != [field]:
        raise MalformedError(
            f"the input {name!r} is {datatype} and has {', '.join(filled) or 'no contents'}", mend=f"Fill {field}."
        )
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise MalformedError(f"the input {name!r} has {len(values)} values; its shape asks for {count}")
    if datatype == "BYTES":
        return texts_of(name, values)
    try:
        return np.fromiter(values, DATATYPES[datatype], count)
    except OverflowError as error:
        raise MalformedError(f"the input {name!r} holds a number out of {datatype}'s range: {error}") from error


def _plain(parameters: Any) -> dict[str, Any]:
    """Give a map of parameters as plain values."""
    found: dict[str, Any] = {}
    for key, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[key] = None if kind is None else getattr(value, kind)
    return found


def _read_wishes(outputs: Any) -> Sequence[OutputWish] | None:
    if not outputs:
        return None
    wishes: dict[str, OutputWish] = {}
    for output in outputs:
        if not output.name or output.name in wishes:
            raise MalformedError("every output that is asked for needs a name of its own")
        parameters = _plain(output.parameters)
        check_parameters(f"the output {output.name!r}", parameters)
        wishes[output.name] = OutputWish(output.name, num_classes=read_classes(parameters))
    return tuple(wishes.values())


def make_message(
    name: str, version: str, inference: Inference, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str]
) -> Any:
    """Make a `ModelInferResponse`; tensors go raw, whatever form the inputs had, as Triton sends them.

    Args:
        name: What the model was asked by.
        version: That answered.
        inference: What was asked.
        outputs: What there is to answer with.
        labels: Names of classes.

    Raises:
        UsageError: An output is asked for that does not exist.
    """
    message = _Response(model_name=name, model_version=version, id=inference.id)
    if inference.outputs is None:
        named = list(outputs.items())
    else:
        named = [(wish.name, array) for wish, array in pick_outputs(outputs, inference.outputs, labels)]
    for output, array in named:
        message.outputs.add(name=output, datatype=datatype_of(array.dtype.name), shape=array.shape)
        is_text = array.dtype.kind in "OUS"
        message.raw_output_contents.append(pack_texts(array) if is_text else array.tobytes())
    return message
