"""A model's configuration for Triton, and the proof that it says what the artifact and our own server say.

Source: triton-inference-server/server, docs/user_guide/model_configuration.md; triton-inference-server/
onnxruntime_backend, README.md ("Model Config Options").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.artifact import TensorSpec
from edgesmith.errors import UnsupportedError, VerificationError
from export.serving.served import ServedModel
from serve.protocols.oip.tensors import DATATYPES, datatype_of
from serve.runtime.golden import read_golden

__all__ = ["LABELS_FILE", "check_parity", "find_warm_up_fault", "make_config", "make_warm_up"]

LABELS_FILE = "labels.txt"
_FREE = -1


def make_config(served: ServedModel, *, threads: int, num_instances: int) -> dict[str, Any]:
    """Make a model's configuration.

    Where all tensors have one axis of rows first and at least one more, that axis is left out and batches are formed;
    else shapes are given whole and none are. `reshape`, by which Triton batches what has only the axis of rows, would
    ask clients for other shapes than the artifact and our own server do.

    Args:
        served: The model.
        threads: Of a run; 0 leaves it to ONNX Runtime, which takes the host's cores.
        num_instances: Copies that run at a time.

    Raises:
        UnsupportedError: It has a tensor of a type that Triton's ONNX Runtime backend does not take.
    """
    specs = (*served.signature.inputs, *served.signature.outputs)
    is_batched = served.has_rows and all(len(spec.shape) > 1 for spec in specs)
    config: dict[str, Any] = {
        "name": served.spec.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": served.config["max_batch_size"] if is_batched else 0,
        "input": [_tensor(spec, is_batched=is_batched) for spec in served.signature.inputs],
        "output": [_output(spec, served, is_batched=is_batched) for spec in served.signature.outputs],
        "instance_group": [{"count": num_instances, "kind": "KIND_CPU"}],
        "parameters": {"intra_op_thread_count": {"string_value": str(threads)}},
    }
    if config["max_batch_size"] > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": served.spec.max_queue_delay_us}
    return config


def make_warm_up(served: ServedModel, config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Make the first requests of a model: its first golden row, alone and as often as the largest batch has rows.

    Returns:
        `model_warmup`, and the files in the model's folder `warmup` that it names. Both empty for a model without
        golden vectors, or one that takes texts as tensors.
    """
    golden = read_golden(served.artifact)
    inputs = served.signature.inputs
    if golden is None or any(spec.dtype == "string" for spec in inputs):
        return [], {}
    size = config["max_batch_size"]
    entries, files = {}, {}
    for number, spec in enumerate(inputs):
        array = np.ascontiguousarray(golden.inputs[spec.name][:1] if size else golden.inputs[spec.name])
        name = f"input{number}.bin"
        files[name] = array.tobytes()
        dims = list(array.shape[1:] if size else array.shape) or [1]
        entries[spec.name] = {"data_type": _data_type(spec), "dims": dims, "input_data_file": name}
    sizes = {"golden row": 1} | ({"largest batch": size} if size > 1 else {})
    return [{"name": name, "batch_size": rows, "inputs": entries} for name, rows in sizes.items()], files


def _tensor(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else _FREE for axis in spec.shape]
    # A scalar has one axis of length 1 there: no tensor is without axes.
    return {"name": spec.name, "data_type": _data_type(spec), "dims": (shape[1:] if is_batched else shape) or [1]}


def _output(spec: TensorSpec, served: ServedModel, *, is_batched: bool) -> dict[str, Any]:
    tensor = _tensor(spec, is_batched=is_batched)
    if served.labels and tensor["dims"][-1] == len(served.labels) and len(served.signature.outputs) == 1:
        tensor["label_filename"] = LABELS_FILE
    return tensor


def _data_type(spec: TensorSpec) -> str:
    datatype = datatype_of(spec.dtype)
    if datatype not in DATATYPES:
        raise UnsupportedError(
            f"the tensor {spec.name!r} is {spec.dtype}, which no client can send",
            mend=f"Make a graph whose inputs and outputs are of {', '.join(DATATYPES)}.",
        )
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"


def check_parity(config: Mapping[str, Any], served: ServedModel, labels: Sequence[str] | None = None) -> None:
    """Compare a configuration, as it was read back, with the artifact's signature and with our own server.

    Args:
        config: From `read_config_text`.
        served: The model.
        labels: Lines of the labels' file, where the configuration names one.

    Raises:
        VerificationError: Naming every difference: a name, type or whole shape of a tensor, their number or order, the
            model's name, platform or backend, batching, versions, or labels.
    """
    faults: list[str] = []

    def compare(what: str, given: object, wanted: object, whose: str) -> None:
        if given != wanted:
            faults.append(f"{what} is {given!r}, and {wanted!r} {whose}")

    ours = served.config
    for name in ("name", "platform", "backend", "version_policy"):
        compare(name, config.get(name), ours[name], "of our server")
    size, batching = config.get("max_batch_size", 0), config.get("dynamic_batching")
    specs = (*served.signature.inputs, *served.signature.outputs)
    if served.has_rows and all(len(spec.shape) > 1 for spec in specs):
        compare("max_batch_size", size, ours["max_batch_size"], "of our server")
        compare("dynamic_batching", batching, ours.get("dynamic_batching"), "of our server")
    else:
        compare("max_batch_size", size, 0, "of a graph whose requests cannot share a run")
        compare("dynamic_batching", batching, None, "of a graph without batches")
    for side, signature in (("input", served.signature.inputs), ("output", served.signature.outputs)):
        tensors, said, said_config = config.get(side, []), served.metadata[f"{side}s"], ours[side]
        names = [one.get("name") for one in tensors]
        compare(f"{side} names", names, [one.name for one in signature], "of the graph")
        compare(f"{side} names", names, [one["name"] for one in said], "of our server's metadata")
        compare(f"{side} names", names, [one["name"] for one in said_config], "of our server's /config")
        for tensor, spec, one, other in zip(tensors, signature, said, said_config, strict=False):
            what = f"{side} {tensor.get('name')!r}"
            _compare_tensor(compare, what, tensor, size, spec, one, other, _batch(ours))
    if any("label_filename" in one for one in config.get("output", [])):
        compare("the list of labels", list(labels or ()), list(served.labels), "of the task")
    if faults:
        raise VerificationError(
            f"{served.spec.name}: Triton's configuration differs from what it describes: {'; '.join(faults)}",
            mend="Export it again; the file must not be edited in these places.",
        )


def _compare_tensor(
    compare: Callable[[str, object, object, str], None],
    what: str,
    tensor: Mapping[str, Any],
    size: int,
    spec: TensorSpec,
    metadata: Mapping[str, Any],
    ours: Mapping[str, Any],
    our_size: int,
) -> None:
    """Compare a tensor of Triton's configuration with the graph's, and with our server's metadata and configuration."""
    whole, kind = _whole(tensor, size), tensor.get("data_type")
    shape = [axis if isinstance(axis, int) else _FREE for axis in spec.shape]
    compare(f"the whole shape of {what}", whole, shape or [1], "of the graph")
    compare(f"the whole shape of {what}", whole, metadata["shape"] or [1], "of our server's metadata")
    compare(f"the whole shape of {what}", whole, _whole(ours, our_size), "of our server's /config")
    compare(f"the type of {what}", kind, _type_name(datatype_of(spec.dtype)), "of the graph")
    compare(f"the type of {what}", kind, _type_name(metadata["datatype"]), "of our server's metadata")
    compare(f"the type of {what}", kind, ours["data_type"], "of our server's /config")


def _batch(config: Mapping[str, Any]) -> int:
    size = config.get("max_batch_size", 0)
    return size if isinstance(size, int) else 0


def _whole(tensor: Mapping[str, Any], max_batch_size: int) -> list[int]:
    return [*([_FREE] if max_batch_size > 0 else []), *tensor.get("dims", [])]


def _type_name(datatype: str) -> str:
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"


def find_warm_up_fault(folder: Path, config: Mapping[str, Any]) -> str:
    """Say what is wrong with a configuration's samples; empty if nothing is.

    Args:
        folder: The model's folder `warmup`.
        config: From `read_config_text`.
    """
    inputs = {one["name"]: one for one in config.get("input", [])}
    for sample in config.get("model_warmup", []):
        if not 1 <= sample.get("batch_size", 0) <= max(1, config.get("max_batch_size", 0)):
            return f"{sample.get('name')!r} has {sample.get('batch_size')} rows"
        if sample.get("inputs", {}).keys() != inputs.keys():
            return f"{sample.get('name')!r} is not of the inputs {', '.join(inputs)}"
        for name, given in sample["inputs"].items():
            wanted, dims = inputs[name], given.get("dims", [])
            if given.get("data_type") != wanted["data_type"]:
                return f"{name!r} is {given.get('data_type')}, and {wanted['data_type']} in `input`"
            if len(dims) != len(wanted["dims"]) or any(
                one not in (_FREE, size) for one, size in zip(wanted["dims"], dims, strict=True)
            ):
                return f"{name!r} has the dims {dims}, and {wanted['dims']} in `input`"
            path = folder / given.get("input_data_file", "")
            size = math.prod(dims) * DATATYPES[wanted["data_type"].removeprefix("TYPE_")].itemsize
            if not path.is_file() or path.stat().st_size != size:
                return f"{path.name!r} does not have the {size:,} bytes of {name!r}"
    return ""
