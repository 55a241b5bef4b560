"""Models whose answers tell them apart, and clients that never stop asking."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from serve.config import ModelSpec, ServerConfig
from serve.models.graph_model import GraphModel
from serve.models.job import Job
from serve.models.repository import Repository
from tests.serve.models_built import FLOAT, save


def constant_model(path: Path, value: float, *, num_weights: int = 4) -> Path:
    """y = x · 0 + value, x of shape [batch, 4]; further weights only take room."""
    weight = np.zeros((4, max(1, num_weights // 4)), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("ReduceSum", ["m", "one"], ["s"], keepdims=1),
            helper.make_node("Add", ["s", "b"], ["y"]),
        ],
        "constant",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([value], np.float32), "b"),
        ],
    )
    return save(graph, path)


def spec_of(path: Path, **values: Any) -> ModelSpec:
    return ModelSpec(path=path, **{"name": "model", "max_batch_size": 4, "threads": 1, **values})


@asynccontextmanager
async def repository_of(*specs: ModelSpec, **values: Any) -> AsyncIterator[Repository]:
    """A repository, not started."""
    config = ServerConfig(models=specs, **values)
    repository = Repository(config, loop=asyncio.get_running_loop())
    try:
        yield repository
    finally:
        await repository.close(5)


async def ask(repository: Repository, name: str = "model", version: str | None = None, rows: int = 1) -> Job:
    """One request, answered."""
    done = asyncio.get_running_loop().create_future()
    arrays = {"x": np.ones((rows, 4), np.float32)}
    job = Job(arrays=arrays, done=done.set_result, num_rows=rows, received_ns=time.monotonic_ns())
    model = repository.get(name, version)
    assert isinstance(model, GraphModel)
    model.submit(job)
    await done
    return job


async def value_of(repository: Repository, name: str = "model", version: str | None = None) -> float:
    """What a model answers."""
    job = await ask(repository, name, version)
    assert job.error is None, job.error
    assert job.outputs is not None
    return float(job.outputs["y"][0, 0])


@dataclass
class Clients:
    """Ask without a pause.

    Attributes:
        values: Answers by the different values that their rows had.
        errors: Of requests that were not answered.
    """

    values: Counter[frozenset[float]] = field(default_factory=Counter)
    errors: list[BaseException] = field(default_factory=list)

    async def run(self, repository: Repository, should_stop: Callable[[], bool]) -> None:
        """One client."""
        while not should_stop():
            job = await ask(repository, rows=3)
            if job.error is not None or job.outputs is None:
                self.errors.append(job.error or AssertionError("no outputs"))
            else:
                self.values[frozenset(job.outputs["y"].ravel().tolist())] += 1
            await asyncio.sleep(0.001)


@asynccontextmanager
async def under_load(repository: Repository, num_clients: int = 3) -> AsyncIterator[Clients]:
    """Clients that ask while the block runs."""
    clients, ended = Clients(), asyncio.Event()
    tasks = [asyncio.create_task(clients.run(repository, ended.is_set)) for _ in range(num_clients)]
    try:
        yield clients
    finally:
        ended.set()
        await asyncio.gather(*tasks)
