"""Models as the protocol describes them: their tensors, and the texts that one with a task takes in their place.

A model with a task on texts is there under two names: `news` takes and gives the graph's tensors, and `news:text` takes
texts and gives labels or embeddings. Two names because a client that was not told anything fills every input that the
metadata lists and expects every output: one list with both could be served to nobody. The colon stands in no model's
own name. Whoever knows what they want may as well send `text` to `news` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from edgesmith.artifact import TensorSpec
from edgesmith.tasks.text_task import TextTask
from serve.json_text import dump_json
from serve.models.graph_model import GraphModel
from serve.models.text_model import TextModel
from serve.protocols.oip.tensors import Tensor, datatype_of
from serve.protocols.oip.text_view import TextView

__all__ = ["TEXT_SUFFIX", "Described", "Model", "describe_model", "split_name"]

Model: TypeAlias = GraphModel | TextModel
TEXT_SUFFIX = ":text"

_PLATFORMS = {"onnx": "onnxruntime_onnx", "gguf": "llama_cpp", "genai": "onnxruntime_genai"}
_BACKENDS = {"onnx": "onnxruntime", "gguf": "llama_cpp", "genai": "onnxruntime_genai"}


class Described:
    """What the protocol says of one version of a model: made once, used by every request.

    Attributes:
        inputs: The graph's.
        outputs: The graph's.
        labels: Names of its classes; none for other models.
        text: How it takes texts; None for a model that takes only tensors.
        head: `"model_name":…,"model_version":…` of every answer.
        text_head: The same under the name for texts.
        heads: Output name → its entry's begin in an answer, up to its shape.
        text_heads: The same of what texts are answered with.
        headers: Of every answer.
        answers: Sizes and shapes of all outputs → the JSON and the headers of an answer that has them as bytes.
        platform: As Triton names it.
        backend: As Triton names it.
        max_batch_size: Rows that are run together; 0 for a graph without a batch axis.
        is_batched: Whether the first axis of every tensor is a free one.
    """

    def __init__(self, model: Model) -> None:
        self.platform = _PLATFORMS.get(model.artifact.kind, model.artifact.kind)
        self.backend = _BACKENDS.get(model.artifact.kind, model.artifact.kind)
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()
        self.labels: Sequence[str] = ()
        self.text: TextView | None = None
        self.max_batch_size = 0
        self.is_batched = False
        if isinstance(model, GraphModel):
            signature = model.signature
            self.inputs, self.outputs = _tensors(signature.inputs), _tensors(signature.outputs)
            self.labels = getattr(model.task, "labels", ())
            specs = (*signature.inputs, *signature.outputs)
            self.is_batched = all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)
            self.max_batch_size = model.max_batch_size if self.is_batched else 0
            if isinstance(model.task, TextTask):
                self.text = TextView(model.task, self.outputs)
        self.head = _head(model.name, model.version)
        self.text_head = _head(model.name + TEXT_SUFFIX, model.version)
        self.heads = _heads(self.outputs)
        self.text_heads = _heads((*self.text.outputs, *self.text.pair_outputs)) if self.text is not None else {}
        self.answers: dict[tuple[tuple[int, ...], ...], tuple[bytes, tuple[tuple[bytes, bytes], ...]]] = {}
        self.headers = ((b"x-model-version", model.version.encode()),)


def _head(name: str, version: str) -> bytes:
    return b'"model_name":%b,"model_version":%b' % (dump_json(name), dump_json(version))


def _heads(outputs: Sequence[Tensor]) -> dict[str, bytes]:
    return {
        output.name: b'{"name":%b,"datatype":"%b","shape":' % (dump_json(output.name), output.datatype.encode())
        for output in outputs
    }


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(spec.name, datatype_of(spec.dtype), tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape))
        for spec in specs
    )


_KNOWN: WeakKeyDictionary[Any, Described] = WeakKeyDictionary()


def describe_model(model: Model) -> Described:
    """Give a model's description, which goes when the model goes."""
    found = _KNOWN.get(model)
    if found is None:
        found = _KNOWN[model] = Described(model)
    return found


def split_name(name: str) -> tuple[str, bool]:
    """The model's own name, and whether it was asked for by its name for texts.

    >>> split_name("news:text"), split_name("news")
    (('news', True), ('news', False))
    """
    return (name.removesuffix(TEXT_SUFFIX), True) if name.endswith(TEXT_SUFFIX) else (name, False)
