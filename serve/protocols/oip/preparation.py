"""From what a client asks to the graph's tensors: one version is chosen, and its task prepares what it will answer.

A request that names no version is given one before its texts are prepared, and goes to that one. Where the model was
replaced while another thread did that, the work begins again: tokens of one version mean nothing to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks.base import Example
from serve.errors import ModelNotFoundError, NotReadyError
from serve.protocols.oip.described import Described, Model, describe_model
from serve.protocols.oip.inference import Inference
from serve.protocols.oip.text_view import TextView
from serve.protocols.workers import workers
from serve.service import Service

__all__ = ["Asked", "Prepared", "choose_view"]

_MAX_TEXT_ON_LOOP = 2048  # characters whose tokens take less time than handing them to a thread and back
_MAX_SWAPS = 3
_NO_ARRAYS: Mapping[str, NDArray[Any]] = {}


@dataclass(slots=True)
class Prepared:
    """A request made ready for one version of a model.

    Attributes:
        model: It.
        view: How the model takes the request's texts; None for tensors.
        arrays: For the graph; empty while texts that are too long for the loop's thread are to be made tensors.
        examples: The texts.
    """

    model: Model
    view: TextView | None
    arrays: Mapping[str, NDArray[Any]]
    examples: Sequence[Example] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the tensors are there."""
        return self.view is None or bool(self.arrays)

    @property
    def is_long(self) -> bool:
        """Whether the texts are better split on another thread than the loop's."""
        return sum(len(one.text) + len(one.text_pair or "") for one in self.examples) > _MAX_TEXT_ON_LOOP

    @property
    def is_long_to_tell(self) -> bool:
        """Whether what they are answered with is better said on another thread."""
        return self.view is not None and self.view.splits_again and self.is_long


@dataclass(slots=True)
class Asked:
    """What a request asks, and of whom. All methods are for the loop's thread.

    Attributes:
        service: Where the models are.
        name: The model's own.
        is_named: Whether it was asked by its name for texts.
        version: That the client named.
        key: Requests of one key go to one version.
        inference: What it asks.
    """

    service: Service
    name: str
    is_named: bool
    version: str | None
    key: str | None
    inference: Inference

    @property
    def is_plain(self) -> bool:
        """Whether nothing depends on the model: tensors whose outputs all go back."""
        inference = self.inference
        return not self.is_named and inference.outputs is None and not TextView.takes(inference.arrays)

    def prepare(self, model: Model | None = None) -> Prepared:
        """Choose a version, and make tensors of texts that are short.

        Args:
            model: Chosen already.

        Raises:
            RequestError: There is no such model, it is not ready, or the texts are not what it takes.
            EdgesmithError: It takes no texts, or has not the outputs that are asked for.
        """
        if model is None:
            model = self.service.choose(self.name, self.version, self.key)
        inference = self.inference
        view = choose_view(describe_model(model), inference, self.name, is_named=self.is_named)
        if view is None:
            return Prepared(model, None, inference.arrays)
        examples = view.examples(inference.arrays)
        prepared = Prepared(model, view, _NO_ARRAYS, examples)
        if not prepared.is_long:
            prepared.arrays = view.task.encode(examples)
        return prepared

    async def finish(self, prepared: Prepared) -> Prepared:
        """Make tensors of long texts on another thread.

        Returns:
            What may be handed over before the loop does anything else.

        Raises:
            RequestError: As `prepare`; or the model was replaced again and again meanwhile.
            EdgesmithError: As `prepare`.
        """
        for _ in range(_MAX_SWAPS):
            view, examples = prepared.view, prepared.examples
            if view is None or prepared.is_finished:
                return prepared
            arrays = await workers().run(partial(view.task.encode, examples))
            model = self._current(prepared.model)
            if model is prepared.model:
                return Prepared(model, view, arrays, examples)
            prepared = self.prepare(model)
        raise NotReadyError(f"the model {self.name!r} is being replaced", mend="Try again in a second.")

    def _current(self, model: Model) -> Model:
        """What answers now in a model's place: its version, or another one if that is gone and the client named none.

        Raises:
            RequestError: Nothing does.
        """
        try:
            return self.service.model(self.name, model.version)
        except (ModelNotFoundError, NotReadyError):
            if self.version is not None:
                raise
            return self.service.choose(self.name, None, self.key)


def choose_view(described: Described, inference: Inference, name: str, *, is_named: bool) -> TextView | None:
    """Say how the model takes the texts of a request; None for tensors of the graph.

    Raises:
        UnsupportedError: It was asked by its name for texts, and takes none.
        UsageError: An output is asked for that there is not.
    """
    view = described.text
    if view is None and is_named:
        raise UnsupportedError(f"{name} has no task that takes texts", mend=f"Send tensors to {name}.")
    if not is_named and (
        not TextView.takes(inference.arrays) or any(tensor.name in inference.arrays for tensor in described.inputs)
    ):
        view = None
    outputs = described.outputs if view is None else (*view.outputs, *view.pair_outputs)
    names = [output.name for output in outputs]
    for wish in inference.outputs or ():
        if wish.name not in names:
            raise UsageError(f"{name} has no output {wish.name[:80]!r}", mend=f"It has {', '.join(names) or 'none'}.")
    return view
