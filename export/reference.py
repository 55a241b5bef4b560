"""The torch model of a checkpoint as an engine: what every exported artifact is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from compress.load import load_model
from edgesmith.artifact import Signature, TensorSpec
from edgesmith.errors import UsageError
from export.inputs import BATCH, SEQUENCE, input_specs, sample_inputs
from serve.runtime.arrays import check_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.tasks.base import Task

__all__ = ["TorchEngine", "torch_threads"]

_SAMPLES = ({BATCH: 2, SEQUENCE: 3}, {BATCH: 4, SEQUENCE: 5})


class TorchEngine:
    """A checkpoint in fp32 on the CPU, with the attention that transformers chooses by itself.

    Args:
        checkpoint: Hugging Face folder with safetensors weights.
        task: Names model class, inputs and outputs.
        threads: Threads for one `run`. More than one is slower where other work keeps the machine busy: torch's
            threads wait for each other by spinning.

    Raises:
        CheckpointError: The checkpoint is damaged, unsafe or lacks weights of the task.
        UnsupportedError: The architecture has no model for this task.
    """

    def __init__(self, checkpoint: Path, task: Task, *, threads: int = 1) -> None:
        self._threads = threads
        self._model: PreTrainedModel | None = load_model(checkpoint, task)
        self.name = f"torch {torch.__version__} (CPU, fp32)"
        self.signature = _signature_of(self._model, task)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `serve.runtime.Engine`."""
        if self._model is None:
            raise UsageError("the engine is closed", mend="Open the checkpoint again.")
        check_inputs(self.signature.inputs, arrays)
        inputs = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        try:
            with torch.inference_mode(), torch_threads(self._threads):
                outputs = self._model(**inputs, return_dict=True)
        except (IndexError, RuntimeError) as error:
            raise UsageError(
                f"the torch model could not run these inputs: {str(error).splitlines()[0]}",
                mend="Check that token ids are below the vocabulary's size and lengths within the model's limit.",
            ) from error
        return {spec.name: outputs[spec.name].float().numpy() for spec in self.signature.outputs}

    def close(self) -> None:
        """Free the model."""
        self._model = None


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run the block with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_sample(model: PreTrainedModel, task: Task, sizes: Mapping[str, int]) -> Any:
    sample = {name: torch.from_numpy(array) for name, array in sample_inputs(task, sizes).items()}
    with torch.inference_mode():
        return model(**sample, return_dict=True)


def _signature_of(model: PreTrainedModel, task: Task) -> Signature:
    """The task's inputs and outputs; an output's axis is free if it grows with the inputs' in two small runs.

    One run would not do: a size that an input has may also be a number of labels.
    """
    outputs, larger = (_run_sample(model, task, sizes) for sizes in _SAMPLES)
    missing = [name for name in task.output_names if outputs.get(name) is None]
    if missing:
        raise UsageError(f"{type(model).__name__} gives {list(outputs)}, but {task.name} needs {missing}")
    free = {tuple(sizes[axis] for sizes in _SAMPLES): axis for axis in (BATCH, SEQUENCE)}
    return Signature(
        inputs=input_specs(task),
        outputs=tuple(
            TensorSpec(
                name=name,
                dtype="float32",
                shape=tuple(
                    free.get(sizes, sizes[0]) for sizes in zip(outputs[name].shape, larger[name].shape, strict=True)
                ),
            )
            for name in task.output_names
        ),
    )
