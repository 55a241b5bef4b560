"""Graph models on real engines, whose runs a test can hold back and count."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesmith.artifact import Artifact
from edgesmith.tasks import Task
from serve.config import ModelSpec
from serve.models.graph_model import GraphModel
from serve.models.job import Job
from serve.runtime import Engine, open_engine
from tests.serve.models_built import FLOAT, save, write

Arrays = Mapping[str, NDArray[Any]]


class HeldEngine:
    """A real engine that waits for `gate` before each run after the model was made, and remembers the runs' rows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.signature = engine.name, engine.signature
        self.gate = threading.Event()
        self.gate.set()
        self.is_inside = threading.Event()
        self.runs: list[int] = []
        self.fault: Exception | None = None
        self.is_closed = False

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        self.is_inside.set()
        assert self.gate.wait(30)
        self.runs.append(len(next(iter(arrays.values()))))
        if self.fault is not None:
            raise self.fault
        return self.engine.run(arrays)

    def close(self) -> None:
        self.is_closed = True
        self.engine.close()

    def hold(self) -> None:
        """Keep the next run from beginning; forget the earlier ones."""
        self.runs.clear()
        self.is_inside.clear()
        self.gate.clear()

    async def entered(self) -> None:
        """Wait until a run is held."""
        assert await asyncio.get_running_loop().run_in_executor(None, self.is_inside.wait, 30)


@asynccontextmanager
async def serving(
    artifact: Artifact, *, task: Task | None = None, **values: Any
) -> AsyncIterator[tuple[GraphModel, HeldEngine]]:
    """A model with a batch size of 8 unless told otherwise, closed at the end."""
    engine = HeldEngine(open_engine(artifact))
    loop = asyncio.get_running_loop()
    spec = ModelSpec(name="m", path=artifact.path, **({"max_batch_size": 8} | values))
    model = await loop.run_in_executor(None, lambda: GraphModel(spec, artifact, engine, loop=loop, task=task))
    engine.runs.clear()
    try:
        yield model, engine
    finally:
        engine.gate.set()
        await model.close()


def submit(model: GraphModel, arrays: Arrays, **values: Any) -> tuple[Job, asyncio.Future[Job]]:
    """Submit a request; the future has the job when it is done."""
    future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
    job = Job(arrays=arrays, done=future.set_result, num_rows=0, received_ns=time.monotonic_ns(), **values)
    model.submit(job)
    return job, future


async def ask(model: GraphModel, arrays: Arrays, **values: Any) -> Job:
    """Submit a request and wait for its end."""
    return await submit(model, arrays, **values)[1]


def graph(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Artifact:
    """An artifact of a graph of float tensors."""
    proto = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        list(initializers),
    )
    save(proto, folder / "model.onnx")
    return write(folder)


def doubling(folder: Path, shape: Sequence[int | str], answer: Sequence[int | str] | None = None) -> Artifact:
    """y = x + x."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return graph(folder, [node], {"x": shape}, {"y": shape if answer is None else answer})


def row_sum(folder: Path, *, claims_rows: bool) -> Artifact:
    """The sum of all rows, as one row; the axes may say, falsely, that there is one for each row of x."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=1),
        helper.make_node("Compress", ["sum", "all"], ["y"], axis=0),  # whose shape nobody can know beforehand
    ]
    kept = numpy_helper.from_array(np.ones(1, bool), "all")
    return graph(folder, nodes, {"x": ("batch", 3)}, {"y": ("batch" if claims_rows else "one", 1)}, [kept])


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
