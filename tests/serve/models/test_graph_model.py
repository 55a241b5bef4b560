from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UsageError
from edgesmith.tasks import Task, load_task, sample_texts
from serve.config import ModelSpec
from serve.errors import DeadlineError, EngineFailedError, NotReadyError, OverloadedError
from serve.models.executor import AbandonedError
from serve.models.graph_model import GraphModel
from serve.models.job import Job
from serve.models.shares import share_threads
from serve.runtime import choose_threads, open_engine
from tests.serve.models.models_run import ask, doubling, floats, row_sum, serving, submit


@pytest.fixture(scope="module")
def doubler(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """y = x + x, x of shape [batch, size]."""
    return doubling(tmp_path_factory.mktemp("doubler"), ("batch", "size"))


@pytest.fixture(scope="module")
def classifier(classifier_path: Path) -> tuple[Artifact, Task]:
    return open_artifact(classifier_path), load_task(classifier_path)


def test_each_request_gets_its_own_answer_whatever_it_was_run_with(classifier: tuple[Artifact, Task]) -> None:
    artifact, task = classifier
    requests = [task.encode(list(sample_texts()[at : at + 1 + at % 3])) for at in range(48)]
    engine = open_engine(artifact)
    expected = [engine.run(arrays)["logits"] for arrays in requests]

    async def run() -> None:
        async with serving(artifact, task=task) as (model, held):
            held.hold()
            answers = [submit(model, arrays)[1] for arrays in requests]
            held.gate.set()
            jobs = await asyncio.gather(*answers)
            assert len(held.runs) < len(requests)
            assert max(held.runs) <= model.max_batch_size
            for job, values in zip(jobs, expected, strict=True):
                assert job.outputs is not None
                np.testing.assert_allclose(job.outputs["logits"], values, atol=1e-4)
                assert job.received_ns <= job.started_ns <= job.finished_ns
                assert job.batch_rows in held.runs
            stats = model.stats
            assert stats.success_count == len(requests)
            assert stats.inference_count == sum(held.runs) == sum(job.num_rows for job in jobs)
            assert stats.execution_count == len(held.runs)
            assert (model.num_queued, model.num_running) == (0, 0)

    asyncio.run(run())


def test_what_waits_is_run_together_and_told_in_one_turn_of_the_loop(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            held.hold()
            first = submit(model, {"x": floats(1, 3)})[1]
            await held.entered()
            assert (model.num_queued, model.num_running) == (0, 1)
            turns: list[int] = []
            turn = 0

            def done(job: Job) -> None:
                turns.append(turn)

            for _ in range(5):
                model.submit(Job(arrays={"x": floats(1, 3)}, done=done, num_rows=1, received_ns=time.monotonic_ns()))
            assert (model.num_queued, model.num_running) == (5, 1)
            held.gate.set()
            await first
            while len(turns) < 5:
                turn += 1
                await asyncio.sleep(0)
            assert held.runs == [1, 5]
            assert len(set(turns)) == 1

    asyncio.run(run())


def test_a_request_that_the_engine_refuses_fails_alone(classifier: tuple[Artifact, Task]) -> None:
    artifact, task = classifier
    good = task.encode(["A late goal won the cup."])
    bad = {name: array.copy() for name, array in good.items()}
    bad["input_ids"][0, 2] = 10**6

    async def run() -> None:
        async with serving(artifact, task=task) as (model, held):
            held.hold()
            futures = [submit(model, arrays)[1] for arrays in (good, good, bad, good)]
            held.gate.set()
            jobs = await asyncio.gather(*futures)
            assert [type(job.error) for job in jobs] == [type(None), type(None), UsageError, type(None)]
            assert jobs[2].outputs is None
            assert model.stats.failures == {"bad_request": 1}
            assert model.stats.success_count == 3

    asyncio.run(run())


def test_a_broken_engine_fails_its_requests_and_not_the_next(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            held.fault = RuntimeError("out of order")
            job = await ask(model, {"x": floats(2, 3)})
            assert isinstance(job.error, EngineFailedError)
            assert job.error.__cause__ is held.fault
            held.fault = None
            assert (await ask(model, {"x": floats(2, 3)})).error is None
            assert model.stats.failures == {"engine_failed": 1}

    asyncio.run(run())


def test_a_full_queue_refuses_at_once(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_queue=3) as (model, held):
            held.hold()
            futures = [submit(model, {"x": floats(1, 3)})[1]]
            await held.entered()
            futures += [submit(model, {"x": floats(1, 3)})[1] for _ in range(3)]
            with pytest.raises(OverloadedError, match="3 requests wait") as caught:
                submit(model, {"x": floats(1, 3)})
            assert 1 <= caught.value.retry_after_s <= 60
            held.gate.set()
            assert [job.error for job in await asyncio.gather(*futures)] == [None] * 4
            assert (await ask(model, {"x": floats(1, 3)})).error is None
            assert model.stats.failures == {"queue_full": 1}

    asyncio.run(run())


def test_a_late_request_is_answered_though_the_engine_is_stuck_and_is_not_run(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            held.hold()
            first = submit(model, {"x": floats(1, 3)})[1]
            await held.entered()
            soon = time.monotonic_ns() + 20_000_000
            late, patient = (submit(model, {"x": floats(1, 3)}, deadline_ns=at)[1] for at in (soon, None))
            assert isinstance((await late).error, DeadlineError)
            assert not first.done()
            held.gate.set()
            assert (await patient).error is None
            assert held.runs == [1, 1]
            assert (model.num_queued, model.num_running) == (0, 0)

    asyncio.run(run())


def test_a_deadline_that_is_over_on_arrival_is_not_run(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            job = await ask(model, {"x": floats(1, 3)}, deadline_ns=time.monotonic_ns() - 1)
            assert isinstance(job.error, DeadlineError)
            assert held.runs == []

    asyncio.run(run())


def test_the_models_deadline_holds_for_requests_that_state_none(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, timeout_s=0.02) as (model, held):
            held.hold()
            first = submit(model, {"x": floats(1, 3)})[1]
            await held.entered()
            assert isinstance((await ask(model, {"x": floats(1, 3)})).error, DeadlineError)
            assert isinstance((await first).error, DeadlineError)  # though its run goes on
            held.gate.set()

    asyncio.run(run())


def test_a_run_that_hangs_keeps_nobody_waiting_and_its_late_result_is_dropped(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_queue=2) as (model, held):
            held.hold()
            late, ended = submit(model, {"x": floats(1, 3)}, deadline_ns=time.monotonic_ns() + 300_000_000)
            await held.entered()
            assert isinstance((await ended).error, DeadlineError)
            assert (model.num_queued, model.num_running) == (0, 1)
            waiting = [submit(model, {"x": floats(1, 3)})[1] for _ in range(2)]
            with pytest.raises(OverloadedError):
                submit(model, {"x": floats(1, 3)})
            held.gate.set()
            assert [job.error for job in await asyncio.gather(*waiting)] == [None, None]
            assert isinstance(late.error, DeadlineError)
            assert model.stats.failures == {"deadline": 1, "queue_full": 1}
            assert (model.num_queued, model.num_running) == (0, 0)

    asyncio.run(run())


def test_clients_that_have_gone_leave_their_places_at_once(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_queue=2) as (model, held):
            held.hold()
            first = submit(model, {"x": floats(1, 3)})[1]
            await held.entered()
            for _ in range(5):
                gone = [submit(model, {"x": floats(1, 3)}) for _ in range(2)]
                for job, _ in gone:
                    job.is_cancelled = True
            live = [submit(model, {"x": floats(1, 3)})[1] for _ in range(2)]
            assert isinstance((await gone[0][1]).error, AbandonedError)
            assert not gone[0][0].arrays  # nothing is kept of it
            held.gate.set()
            assert [job.error for job in await asyncio.gather(first, *live)] == [None] * 3
            assert held.runs == [1, 2]
            assert model.stats.failures == {"cancelled": 10}

    asyncio.run(run())


def test_a_closed_model_is_in_no_cycle(doubler: Artifact) -> None:
    async def run() -> None:
        gc.collect()
        gc.disable()
        try:
            async with serving(doubler) as (model, _):
                await ask(model, {"x": floats(1, 3)})
                found = weakref.ref(model)
            del model
            while any(thread.name == "m-1" for thread in threading.enumerate()):
                await asyncio.sleep(0.001)
            assert found() is None
        finally:
            gc.enable()

    asyncio.run(run())


def test_a_request_whose_client_has_gone_is_not_run(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            held.hold()
            first = submit(model, {"x": floats(1, 3)})[1]
            await held.entered()
            gone = [submit(model, {"x": floats(1, 3)}) for _ in range(3)]
            for job, _ in gone[:2]:
                job.is_cancelled = True
            held.gate.set()
            jobs = await asyncio.gather(first, *(future for _, future in gone))
            assert [type(job.error) for job in jobs] == [type(None), AbandonedError, AbandonedError, type(None)]
            assert held.runs == [1, 1]
            assert model.stats.failures == {"cancelled": 2}

    asyncio.run(run())


def test_a_request_above_the_batch_size_is_run_in_pieces(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_batch_size=4) as (model, held):
            x = floats(11, 3)
            job = await ask(model, {"x": x})
            assert held.runs == [4, 4, 3]
            assert job.outputs is not None
            np.testing.assert_array_equal(job.outputs["y"], x + x)
            assert (model.stats.success_count, model.stats.inference_count) == (1, 11)
            assert model.stats.snapshot()["inference_stats"]["compute_infer"]["count"] == 1

    asyncio.run(run())


def test_a_graph_of_one_row_is_run_row_by_row(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(doubling(tmp_path, (1, 3))) as (model, held):
            x = floats(3, 3)
            job = await ask(model, {"x": x})
            assert held.runs == [1, 1, 1]
            assert job.outputs is not None
            np.testing.assert_array_equal(job.outputs["y"], x + x)
            assert model.has_batch_axis
            assert model.max_batch_size == 1

    asyncio.run(run())


@pytest.mark.parametrize("claims_rows", [False, True])
def test_a_graph_without_independent_rows_runs_each_request_whole(tmp_path: Path, claims_rows: bool) -> None:
    artifact = row_sum(tmp_path, claims_rows=claims_rows)

    async def run() -> None:
        async with serving(artifact) as (model, held):
            held.hold()
            futures = [submit(model, {"x": floats(rows, 3)})[1] for rows in (12, 2, 1)]
            held.gate.set()
            for job in await asyncio.gather(*futures):
                assert job.outputs is not None
                np.testing.assert_allclose(job.outputs["y"].sum(), job.arrays["x"].sum(), rtol=1e-4)
            assert held.runs == [12, 2, 1]
            assert not model.has_batch_axis

    asyncio.run(run())


def test_a_batch_may_wait_to_become_full(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_batch_size=2, max_queue_delay_us=30_000_000) as (model, held):
            first = submit(model, {"x": floats(1, 3)})[1]
            await asyncio.sleep(0.02)
            assert held.runs == []
            second = submit(model, {"x": floats(1, 3)})[1]
            await asyncio.gather(first, second)
            assert held.runs == [2]

    asyncio.run(run())


def test_a_batch_that_does_not_become_full_is_run_after_its_delay(doubler: Artifact) -> None:
    async def run() -> None:
        async with serving(doubler, max_batch_size=4, max_queue_delay_us=5000) as (model, held):
            await ask(model, {"x": floats(1, 3)})
            assert held.runs == [1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "shape", "dtype"), [("z", (1, 3), "float32"), ("x", (3,), "float32"), ("x", (1, 3), "float64")]
)
def test_arrays_that_do_not_fit_are_refused_on_submission(
    doubler: Artifact, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    async def run() -> None:
        async with serving(doubler) as (model, held):
            with pytest.raises(UsageError, match="input"):
                submit(model, {name: np.ones(shape, dtype)})
            assert held.runs == []
            assert model.stats.failures == {"bad_request": 1}

    asyncio.run(run())


async def _finishes_in_time(model: GraphModel) -> None:
    await model.close()


async def _times_out(model: GraphModel) -> None:
    await model.close(timeout_s=0.01)


@pytest.mark.parametrize(("close", "is_patient"), [(_finishes_in_time, True), (_times_out, False)])
def test_closing_answers_all_and_takes_no_more(
    doubler: Artifact, close: Callable[[GraphModel], Awaitable[None]], is_patient: bool
) -> None:
    async def run() -> None:
        async with serving(doubler, max_batch_size=1) as (model, held):
            held.hold()
            futures = [submit(model, {"x": floats(1, 3)})[1] for _ in range(3)]
            await held.entered()
            closing = asyncio.ensure_future(close(model))
            await asyncio.sleep(0)
            with pytest.raises(NotReadyError, match="unloaded"):
                submit(model, {"x": floats(1, 3)})
            if is_patient:
                held.gate.set()
            await closing
            errors = [type(job.error) for job in await asyncio.gather(*futures)]
            assert errors == [type(None) if is_patient else NotReadyError] * 3
            held.gate.set()
            await model.close()  # again: waits for the thread, in either case
            assert held.is_closed
            assert len(held.runs) == (3 if is_patient else 1)

    asyncio.run(run())


def test_a_callback_that_fails_does_not_keep_others_from_being_told(doubler: Artifact) -> None:
    async def run() -> None:
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))

        def fail(_: Job) -> None:
            raise RuntimeError("no thanks")

        async with serving(doubler) as (model, held):
            held.hold()
            model.submit(Job(arrays={"x": floats(1, 3)}, done=fail, num_rows=1, received_ns=time.monotonic_ns()))
            future = submit(model, {"x": floats(1, 3)})[1]
            held.gate.set()
            assert (await future).error is None
        assert [str(fault) for fault in faults] == ["no thanks"]

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(3))
def test_every_request_is_told_exactly_once_whatever_happens(doubler: Artifact, seed: int) -> None:
    rng = np.random.default_rng(seed)

    async def run() -> None:
        told: list[Job] = []
        taken: list[Job] = []
        refused = 0
        async with serving(doubler, max_queue=40, max_queue_delay_us=int(rng.choice([0, 300]))) as (model, _):
            for _ in range(600):
                job = Job(
                    arrays={"x": floats(int(rng.integers(1, 20)), int(rng.integers(1, 3)))},
                    done=told.append,
                    num_rows=0,
                    received_ns=time.monotonic_ns(),
                    deadline_ns=time.monotonic_ns() + int(rng.choice([100_000, 2_000_000, 10**10])),
                )
                try:
                    model.submit(job)
                except OverloadedError:
                    refused += 1
                else:
                    taken.append(job)
                if rng.random() < 0.1 and taken:
                    taken[int(rng.integers(len(taken)))].is_cancelled = True
                if rng.random() < 0.1:
                    await asyncio.sleep(float(rng.choice([0, 0, 0.002])))
            await model.close(timeout_s=float(rng.choice([0, 10])))
            assert len(told) == len(set(map(id, told))) == len(taken)
            await model.close()
            assert (model.num_queued, model.num_running) == (0, 0)
            assert len(told) == len(taken)
        for job in told:
            if job.error is None:
                assert job.outputs is not None
                np.testing.assert_array_equal(job.outputs["y"], job.arrays["x"] * 2)
        answered = sum(job.error is None for job in told)
        assert (model.stats.success_count, model.stats.fail_count) == (answered, len(told) - answered + refused)
        assert answered > 0

    asyncio.run(run())


def test_threads_are_shared_by_the_models_that_state_none() -> None:
    def spec(name: str, threads: int | None = None) -> ModelSpec:
        return ModelSpec(name=name, path=Path(name), threads=threads)

    assert share_threads([]) == {}
    assert share_threads([spec("a")]) == {("a", "1"): choose_threads()}
    assert share_threads([spec("a", 7), spec("b"), spec("c")]) == {("a", "1"): 7, ("b", "1"): 1, ("c", "1"): 1}
