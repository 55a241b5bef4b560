"""What holds for every request, whatever protocol it came by."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.config import ModelSpec, ServerConfig
from serve.drift import make_text_reference, write_reference
from serve.metrics import Metrics
from serve.models.job import Job
from serve.models.memory import children_of
from serve.models.repository import Repository
from serve.service import Service
from serve.traffic import Traffic, TrafficSettings
from tests.serve.models.repository_built import constant_model
from tests.serve.models_built import write


def watched_folder(folder: Path, value: float = 1) -> Path:
    """An artifact with a reference, so that its requests are watched for drift."""
    constant_model(folder / "model.onnx", value)
    write_reference(folder, make_text_reference(lambda text: list(text.encode()), [f"text {i}" * i for i in range(60)]))
    write(folder)
    return folder


@asynccontextmanager
async def service_of(*specs: ModelSpec, **values: Any) -> AsyncIterator[Service]:
    config = ServerConfig(models=specs, **values)
    repository = Repository(config, loop=asyncio.get_running_loop())
    traffic = Traffic(config.splits, config.shadows, settings=TrafficSettings(), seed=0)
    service = Service(config, repository, Metrics(repository, []), traffic)
    try:
        await repository.start()
        yield service
    finally:
        await repository.close(5)
        traffic.close()


def spec_of(path: Path, **values: Any) -> ModelSpec:
    return ModelSpec(path=path, **{"name": "m", "max_batch_size": 4, "threads": 1, **values})


async def ask(service: Service, version: str | None = None, **values: Any) -> Job:
    done: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
    arrays = {"x": np.ones((1, 4), np.float32)}
    job = Job(arrays=arrays, done=done.set_result, num_rows=1, received_ns=time.monotonic_ns())
    service.infer("m", version, job, protocol="test", **values)
    ended = await done
    await asyncio.sleep(0)
    return ended


def num_drift_threads() -> int:
    return sum(thread.name == "drift" for thread in threading.enumerate())


def test_drift_is_watched_from_the_load_to_the_end_of_a_model_and_its_files_may_go(tmp_path: Path) -> None:
    path = watched_folder(tmp_path / "new")
    before = num_drift_threads()

    async def run() -> None:
        async with service_of(spec_of(path)) as service:
            first = service.drift["m", "1"]
            await service.repository.load("m")
            second = service.drift["m", "1"]
            assert second is not first
            path.rename(tmp_path / "old")
            assert (await ask(service)).error is None
            closing = service.repository._entries["m"]["1"].closing
            assert closing is not None
            await closing
            assert num_drift_threads() == before + 1
            await service.repository.unload("m")
            assert service.drift == {}
            assert num_drift_threads() == before

    asyncio.run(run())


def test_a_fault_of_those_who_watch_fails_no_request_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = watched_folder(tmp_path)
    faults: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with service_of(spec_of(path)) as service:
            monkeypatch.setattr(service.drift["m", "1"], "_seen", None)
            for _ in range(3):
                service.drift["m", "1"]._next_ns = 0
                assert (await ask(service)).error is None
            assert service.num_watch_faults == 3

    caplog.set_level(logging.ERROR, "serve.service")
    asyncio.run(run())
    assert faults == []
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["drift failed"]


def test_only_the_first_job_of_a_request_is_counted(tmp_path: Path) -> None:
    path = constant_model(tmp_path / "one.onnx", 1)

    async def run() -> None:
        async with service_of(spec_of(path), splits={"m": {"1": 1.0}}) as service:
            await asyncio.gather(*(ask(service, counts=index == 0) for index in range(3)))
            assert {key: one.count for key, one in service.metrics.requests.items()} == {("m", "1", "test", "ok"): 1}
            assert service.traffic.models["m"].arms["1"].num_requests == 1

    asyncio.run(run())


def test_while_a_version_is_out_another_answers_and_nothing_is_compared(tmp_path: Path) -> None:
    one, two = (constant_model(tmp_path / f"{value}.onnx", value) for value in (1, 2))
    specs = spec_of(one), spec_of(two, version="2"), spec_of(two, version="3")

    async def run() -> None:
        async with service_of(*specs, splits={"m": {"1": 0.9, "2": 0.1}}) as service:
            arms = service.traffic.models["m"].arms
            await asyncio.gather(*(ask(service) for _ in range(20)))
            assert sum(arm.num_requests for arm in arms.values()) == 20
            await service.repository.unload("m", "1")
            for _ in range(5):
                job = await ask(service)
                assert job.outputs is not None
                assert job.outputs["y"].tolist() == [[2.0]]
            await service.repository.unload("m", "2")
            assert service.choose("m", None, None).version == "3"
            assert sum(arm.num_requests for arm in arms.values()) == 20
            await service.repository.load("m", "1")
            assert service.choose("m", None, None).version == "1"

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="its process is found through /proc")
def test_a_load_that_hangs_does_not_outlive_the_order_to_stop(tmp_path: Path) -> None:
    model = constant_model(tmp_path / "one.onnx", 1)
    command = [sys.executable, "-m", "serve", f"m={model}", "--isolate", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (found := children_of(process.pid)):
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(found[0], signal.SIGSTOP)
        time.sleep(0.2)  # so that it has the order to open the model, which it does not obey
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert children_of(process.pid) == []
    finally:
        process.kill()
        process.wait()
