"""What is told of a model repository: how Triton runs it, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgesmith import __version__
from export.serving.served import ServedModel
from serve.protocols.oip.tensors import datatype_of
from serve.runtime.golden import read_golden

__all__ = ["write_readme", "write_request"]

_MOST_ELEMENTS = 4096  # of a request that is to be read by people
_HEAD = """A model repository for Triton Inference Server: {names}.
Made by edgesmith {version}. Each config.pbtxt was read back and compared with its graph and with what edgesmith's own
server says of it.

Run it, in this folder (any release from 2024 on whose ONNX Runtime is not older than the one the graphs were made for):

    docker run --rm -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -v "$PWD:/models:ro" \\
        nvcr.io/nvidia/tritonserver:${{TRITON:-25.06}}-py3 \\
        tritonserver --model-repository=/models --disable-auto-complete-config

Without --disable-auto-complete-config, Triton forms batches of 4 where a config.pbtxt says that there are none.
intra_op_thread_count 0 lets each instance use all of the host's cores, whatever the container may use: with CPU limits
or several instances give a number, `edgesmith export --for triton --threads N`.

Ask it:

    curl -s 127.0.0.1:8000/v2/models/{name}/config
{curl}
    import tritonclient.http as triton            # pip install 'tritonclient[http]'
    client = triton.InferenceServerClient("127.0.0.1:8000")
{client}"""
_CURL = """    curl -s 127.0.0.1:8000/v2/models/{name}/infer -H 'content-type: application/json' -d @{name}/request.json
"""
_TENSORS = """    inputs = []
    for name, array in arrays.items():            # NumPy arrays of the shapes and types in config.pbtxt
        inputs.append(triton.InferInput(name, array.shape, triton.np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer("{name}", inputs)
    outputs = {{one: answer.as_numpy(one) for one in {outputs}}}
"""
_TEXTS = """
Triton takes tensors, no texts. What makes tensors of texts lies beside each graph, for the client:

    from pathlib import Path
    from edgesmith.tasks import load_task  # pip install 'edgesmith[serve]'
    task = load_task(Path("{name}/{version}"))
    arrays = task.encode(["a text", "another"])
    ...                                           # ask, as above
    vectors = task.vectors(outputs, arrays)       # a classifier's logits, or embeddings
"""


def write_readme(served: Sequence[ServedModel], notes: Sequence[str]) -> str:
    """The text of README.txt."""
    first = served[0]
    name = first.spec.name
    text = _HEAD.format(
        names=", ".join(f"{one.spec.name} {one.spec.version}" for one in served),
        version=__version__,
        name=name,
        curl=_CURL.format(name=name) if read_golden(first.artifact) is not None else "",
        client=_TENSORS.format(name=name, outputs=[one.name for one in first.signature.outputs]),
    )
    texts = next((one for one in served if one.is_text), None)
    if texts is not None:
        text += _TEXTS.format(name=texts.spec.name, version=texts.spec.version)
    if notes:
        text += "\nTo be known:\n" + "".join(f"- {note}\n" for note in notes)
    return text


def write_request(served: ServedModel, path: Path) -> None:
    """Write a request with the model's first golden row, where it has one that is short enough to be read."""
    golden = read_golden(served.artifact)
    if golden is None:
        return
    rows = slice(1) if served.has_rows else slice(None)
    arrays = {spec.name: golden.inputs[spec.name][rows] for spec in served.signature.inputs}
    if sum(array.size for array in arrays.values()) > _MOST_ELEMENTS:
        return
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_of(array.dtype.name),
            "data": array.ravel().tolist(),
        }
        for name, array in arrays.items()
    ]
    path.write_text(json.dumps({"inputs": inputs}) + "\n")
