"""Engines in real processes, which are killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgesmith.artifact import open_artifact
from edgesmith.errors import ArtifactError, EdgesmithError, UnsupportedError, UsageError
from serve.errors import EngineFailedError, NotReadyError
from serve.models.memory import children_of, read_memory
from serve.runtime import open_engine
from serve.runtime.child_engine import ChildEngine, open_child
from serve.runtime.child_process import ChildSettings
from tests.serve.models_built import FLOAT, affine, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
QUICK = ChildSettings(first_delay_s=0.01)
ROOT = Path(__file__).parents[3]


def slow_model(path: Path) -> Path:
    """Multiplies large matrices for some seconds."""
    nodes = [helper.make_node("MatMul", ["x" if at == 0 else f"h{at}", "w"], [f"h{at + 1}"]) for at in range(300)]
    weight = np.eye(1024, dtype=np.float32)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", ["h300"], ["y"])],
        "slow",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 1024])],
        [numpy_helper.from_array(weight, "w")],
    )
    return save(graph, path)


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def pid_of(engine: ChildEngine) -> int:
    assert engine.process.pid is not None
    return engine.process.pid


def open_graph(path: Path, settings: ChildSettings = QUICK) -> ChildEngine:
    engine = open_child(path, label="model 1", settings=settings)
    assert isinstance(engine, ChildEngine)
    return engine


@pytest.fixture(scope="module")
def affine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(affine(), tmp_path_factory.mktemp("child") / "affine.onnx")


@pytest.fixture
def engine(affine_file: Path) -> Iterator[ChildEngine]:
    engine = open_graph(affine_file)
    yield engine
    engine.close()


def test_it_is_the_engine_that_runs_here(engine: ChildEngine, affine_file: Path) -> None:
    artifact = open_artifact(affine_file)
    here = open_engine(artifact)
    assert engine.artifact.digest == artifact.digest
    assert engine.signature == here.signature
    assert here.name in engine.name
    assert np.array_equal(engine.run({"x": ROWS})["y"], here.run({"x": ROWS})["y"])
    assert np.array_equal(engine.run({"x": ROWS.T.copy().T})["y"], here.run({"x": ROWS})["y"])


def test_wrong_inputs_are_refused_and_the_process_goes_on(engine: ChildEngine) -> None:
    pid = engine.process.pid
    with pytest.raises(UsageError, match=r"float64\[2, 4\]"):
        engine.run({"x": ROWS.astype(np.float64)})
    with pytest.raises(UsageError, match="could not run"):
        engine.run_checked({"x": ROWS[:, :3].copy()})
    assert engine.run({"x": ROWS})["y"].shape == (2, 3)
    assert engine.process.pid == pid


def test_errors_of_opening_are_the_childs_own(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match="model"):
        open_child(tmp_path / "model.onnx", label="damaged")
    with pytest.raises(UsageError, match="no such file"):
        open_child(tmp_path / "missing.onnx", label="missing")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="'checkpoint'"):
        open_child(tmp_path / "checkpoint", label="checkpoint")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_fails_the_run_it_was_in_and_no_later_one(
    number: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_graph(slow_model(tmp_path / "slow.onnx"), ChildSettings(first_delay_s=0.3))
    pid, errors = pid_of(engine), list[EdgesmithError]()

    def run() -> None:
        try:
            engine.run({"x": np.ones((1024, 1024), np.float32)})
        except EdgesmithError as error:
            errors.append(error)

    runner, before = threading.Thread(target=run), cpu_ticks(pid)
    runner.start()
    wait_until(lambda: cpu_ticks(pid) > before + 5)  # it is in the middle of the run
    os.kill(pid, number)
    runner.join()
    assert [type(error) for error in errors] == [EngineFailedError]
    assert number.name in str(errors[0])
    with pytest.raises(NotReadyError, match=f"{number.name}.*started again"):
        engine.run({"x": np.ones((1, 1024), np.float32)})
    wait_until(lambda: engine.process.pid)
    assert engine.process.pid != pid
    assert engine.run({"x": np.ones((1, 1024), np.float32)})["y"].tolist() == [[1.0] * 1024]
    assert engine.process.num_crashes == 1
    engine.close()
    if number == signal.SIGSEGV:  # what it wrote of its end is in the log, with its name
        assert f"[model 1, process {pid}] Fatal Python error: Segmentation fault" in caplog.text


def test_a_crash_while_idle_is_noticed(engine: ChildEngine) -> None:
    pid = pid_of(engine)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: engine.process.pid not in (None, pid))
    assert engine.run({"x": ROWS})["y"].shape == (2, 3)


def test_one_that_hangs_is_killed(affine_file: Path) -> None:
    engine = open_graph(affine_file, ChildSettings(timeout_s=0.2, first_delay_s=0.01))
    pid = pid_of(engine)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineFailedError, match=r"within 0.2 s"):
        engine.run({"x": ROWS})
    assert not is_alive(pid)
    wait_until(lambda: engine.process.pid)
    assert engine.run({"x": ROWS})["y"].shape == (2, 3)
    engine.close()


def test_after_a_crash_only_the_same_artifact_is_opened(
    tmp_path: Path, affine_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(affine_file.read_bytes())
    engine = open_graph(path)
    slow_model(path)
    os.kill(pid_of(engine), signal.SIGKILL)
    wait_until(lambda: "is another artifact" in caplog.text)
    with pytest.raises(NotReadyError, match="is another artifact"):
        engine.run({"x": ROWS})
    path.write_bytes(affine_file.read_bytes())
    wait_until(lambda: engine.process.pid)
    assert engine.run({"x": ROWS})["y"].shape == (2, 3)
    engine.close()


def test_a_crash_while_opening_is_an_error(tmp_path: Path) -> None:
    path, known = slow_model(tmp_path / "slow.onnx"), set(children_of())
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set():
            for pid in set(children_of()) - known:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(EngineFailedError, match=r"SIGKILL .* while it opened"):
            open_child(path, label="unlucky")
    finally:
        ended.set()
        killer.join()


def test_signals_for_the_server_do_not_stop_it(engine: ChildEngine) -> None:
    pid = pid_of(engine)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert engine.run({"x": ROWS})["y"].shape == (2, 3)
    assert engine.process.pid == pid


def test_closing_ends_the_process_and_may_be_done_twice(affine_file: Path) -> None:
    engine = open_graph(affine_file)
    pid = pid_of(engine)
    memory = read_memory(pid)
    assert memory is not None
    assert memory.peak_bytes >= memory.resident_bytes > memory.private_bytes > 0
    assert pid in children_of()
    engine.close()
    engine.close()
    assert not is_alive(pid)
    assert pid not in children_of()
    assert engine.process.num_crashes == 0
    with pytest.raises(NotReadyError, match="closed"):
        engine.run({"x": ROWS})


def test_closing_ends_even_one_that_hangs_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.runtime.child_process._END_S", 0.1)
    engine = open_graph(slow_model(tmp_path / "slow.onnx"))
    pid, errors = pid_of(engine), list[EdgesmithError]()
    os.kill(pid, signal.SIGSTOP)

    def run() -> None:
        try:
            engine.run({"x": np.ones((1, 1024), np.float32)})
        except EdgesmithError as error:
            errors.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    wait_until(lambda: engine.process._lock.locked())
    engine.close()
    runner.join()
    assert not is_alive(pid)
    assert [type(error) for error in errors] == [EngineFailedError]


PARENT = """
import sys, time
from pathlib import Path
from serve.runtime.child_engine import open_child
engine = open_child(Path(sys.argv[1]), label="child")
print(engine.process.pid, flush=True)
time.sleep(600)
"""


def test_it_never_outlives_the_server(affine_file: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(affine_file)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        os.kill(pid, signal.SIGSTOP)  # so that it cannot read that the other end is closed
        parent.kill()
    wait_until(lambda: not is_alive(pid))


def test_no_thread_and_no_descriptor_is_left(affine_file: Path) -> None:
    open_graph(affine_file).close()
    wait_until(lambda: not own_threads())
    before = num_descriptors()
    for _ in range(2):
        engine = open_graph(affine_file)
        pid = pid_of(engine)
        os.kill(pid, signal.SIGKILL)
        while engine.process.pid in (None, pid):
            time.sleep(0.005)
        engine.close()
    wait_until(lambda: not own_threads())
    assert num_descriptors() <= before


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("of model 1")]


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
