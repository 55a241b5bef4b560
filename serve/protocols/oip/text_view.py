"""Texts in place of tensors, for models whose task encodes texts, and what they are answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.tasks.base import Example
from edgesmith.tasks.pooling import normalize_rows
from edgesmith.tasks.scoring import softmax
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.token_classification import TokenClassification
from serve.errors import MalformedError
from serve.json_text import dump_json
from serve.protocols.oip.tensors import Tensor

__all__ = ["TextView"]

_TEXT, _PAIR = "text", "text_pair"


class TextView:
    """How a model takes texts.

    Args:
        task: The model's.
        graph_outputs: Of its graph.

    Attributes:
        inputs: `text`.
        optional_inputs: `text_pair`, of a task that takes pairs.
        outputs: A classifier's `label`, `score` and `scores` with its `logits`; an encoder's `embedding`; a tagger's
            `entities`, a list in JSON for each text.
        pair_outputs: What an encoder gives for pairs beside them.
        splits_again: Whether `tell` splits the texts into tokens once more, to say where in them something stands.
    """

    def __init__(self, task: TextTask, graph_outputs: Sequence[Tensor]) -> None:
        self.task = task
        self.inputs = (Tensor(_TEXT, "BYTES", (-1,)),)
        takes_pairs = _PAIR in task.column_names
        self.optional_inputs = (Tensor(_PAIR, "BYTES", (-1,)),) if takes_pairs else ()
        self.pair_outputs: tuple[Tensor, ...] = ()
        self.splits_again = isinstance(task, TokenClassification)
        width = graph_outputs[0].shape[-1] if graph_outputs and graph_outputs[0].shape else -1
        if task.output_kind == "embedding":
            self.outputs: tuple[Tensor, ...] = (Tensor("embedding", "FP32", (-1, width)),)
            self.pair_outputs = (Tensor("embedding_pair", "FP32", (-1, width)), Tensor("similarity", "FP32", (-1,)))
        elif isinstance(task, TokenClassification):
            self.outputs = (Tensor("entities", "BYTES", (-1,)),)
        else:
            width = len(getattr(task, "labels", ())) or width
            self.outputs = (
                Tensor("label", "BYTES", (-1,)),
                Tensor("score", "FP32", (-1,)),
                Tensor("scores", "FP32", (-1, width)),
                Tensor("logits", "FP32", (-1, width)),
            )

    @staticmethod
    def takes(arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether inputs are texts."""
        array = arrays.get(_TEXT)
        return array is not None and array.dtype == np.object_

    def examples(self, arrays: Mapping[str, NDArray[Any]]) -> list[Example]:
        """Read the texts.

        Args:
            arrays: `text` of shape [n] or [n, 1], and perhaps `text_pair` with as many.

        Raises:
            MalformedError: There are other inputs, or they do not fit together.
        """
        known = {tensor.name for tensor in (*self.inputs, *self.optional_inputs)}
        if unknown := arrays.keys() - known:
            mend = "Send `text`, with or without pairs." if _PAIR in known else "Send `text` alone."
            raise MalformedError(f"{min(unknown)!r} does not go with texts", mend=mend)
        texts, pairs = _texts(arrays, _TEXT), _texts(arrays, _PAIR) if _PAIR in arrays else None
        if pairs is None:
            return [Example(text) for text in texts]
        if len(pairs) != len(texts):
            raise MalformedError(f"{len(pairs)} texts in text_pair for {len(texts)} in text")
        return [Example(*both) for both in zip(texts, pairs, strict=True)]

    def tell(
        self, outputs: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]], examples: Sequence[Example]
    ) -> dict[str, NDArray[Any]]:
        """Say what a graph's outputs mean.

        Args:
            outputs: Of the graph.
            arrays: What it was given.
            examples: What those were made of.

        Returns:
            The arrays of `outputs`, with those of `pair_outputs` for pairs.
        """
        if isinstance(self.task, TokenClassification):
            told = [dump_json(one["entities"]).decode() for one in self.task.decode(outputs, arrays, examples)]
            return {"entities": np.array(told, dtype=np.object_)}
        vectors = self.task.vectors(outputs, arrays)  # [rows, labels or hidden]
        if self.task.output_kind == "embedding":
            if examples[0].text_pair is None:
                return {"embedding": vectors}
            first, second = vectors[0::2], vectors[1::2]
            units = normalize_rows(first.astype(np.float64)), normalize_rows(second.astype(np.float64))
            similarity = np.einsum("nh,nh->n", *units).astype(np.float32)
            return {"embedding": first, "embedding_pair": second, "similarity": similarity}
        scores = softmax(vectors).astype(np.float32)
        best = scores.argmax(axis=1)
        labels = getattr(self.task, "labels", ())
        named = np.array([labels[index] for index in best.tolist()], dtype=np.object_)
        return {
            "label": named,
            "score": np.take_along_axis(scores, best[:, None], axis=1)[:, 0],
            "scores": scores,
            "logits": vectors,
        }


def _texts(arrays: Mapping[str, NDArray[Any]], name: str) -> list[str]:
    array = arrays.get(name)
    if array is None or array.dtype != np.object_ or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise MalformedError(f"the input {name!r} is to be BYTES of shape [n] or [n, 1]")
    texts: list[str] = array.ravel().tolist()
    return texts
