"""The servers that are compared: ours, ours under uvicorn, and others that people use, each as its users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_bench.processes import Running, cores, free_port, launch
from serve_bench.wire import infer_body, post

__all__ = [
    "OURS",
    "PEERS",
    "PEERS_PYTHON",
    "ROOT",
    "Arrays",
    "EngineChild",
    "Subject",
    "identity",
    "launch_ours",
    "pooling",
]

ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
APPS = Path(__file__).parent / "peers"
Arrays = Mapping[str, NDArray[Any]]


@contextmanager
def launch_ours(
    *arguments: str, name: str = "edgesmith", environment: Mapping[str, str] | None = None, core: int | None = None
) -> Iterator[Running]:
    """Our server, on its own HTTP."""
    port = free_port()
    command = [sys.executable, "-m", "serve", *arguments, "--port", str(port)]
    with launch(
        name,
        command,
        port=port,
        ready="/v2/health/ready",
        core=cores()[0] if core is None else core,
        environment=environment,
        cwd=ROOT,
    ) as found:
        yield found


@dataclass(frozen=True)
class Subject:
    """A server to compare. Its methods start it with the model file `m`, and write a request for it."""

    name: str
    kind: str
    flags: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is installed."""
        return self.kind in ("ours", "asgi") or PEERS_PYTHON.exists()

    def forms(self) -> tuple[str, ...]:
        """Ways in which it takes tensors."""
        return ("JSON",) if self.kind in ("litserve", "mlserver") else ("JSON", "binary")

    def request(self, arrays: Arrays, form: str) -> bytes:
        """One request with arrays, as bytes."""
        if self.kind == "litserve":
            return post("/predict", json.dumps({"inputs": {k: v.tolist() for k, v in arrays.items()}}).encode())
        if self.kind == "fastapi" and form == "binary":
            (array,) = arrays.values()
            shape = ",".join(map(str, array.shape))
            return post(f"/raw?shape={shape}", np.ascontiguousarray(array).tobytes(), "application/octet-stream")
        return infer_body(arrays, is_binary=form == "binary")

    @contextmanager
    def start(self, model: Path, folder: Path, *, batch: int = 1) -> Iterator[Running]:
        """Start it.

        Args:
            model: An ONNX file, or for ours an artifact's folder.
            folder: For its files.
            batch: Rows that it may run together.
        """
        file = model / "model.onnx" if model.is_dir() else model
        core, port, python = cores()[0], free_port(), str(PEERS_PYTHON)
        model_flags = (f"m={model}", "--threads", "1", *self.flags)
        environment: dict[str, str] = {}
        ready, cwd = "/v2/health/ready", folder
        match self.kind:
            case "ours":
                command = [sys.executable, "-m", "serve", *model_flags, "--port", str(port)]
                cwd = ROOT
            case "asgi":
                command = [sys.executable, str(APPS / "asgi_ours.py"), str(port), *model_flags]
                environment = {"PYTHONPATH": str(ROOT)}
            case "litserve":
                command, ready = [python, str(APPS / "litserve_app.py")], "/health"
                environment = {"LITSERVE_MODEL": str(file), "LITSERVE_PORT": str(port), "LITSERVE_BATCH": str(batch)}
            case "fastapi":
                command = [python, "-m", "uvicorn", "fastapi_app:app", "--port", str(port)]
                command += ["--app-dir", str(APPS), "--log-level", "warning", "--no-access-log"]
                environment = {"FASTAPI_MODEL": str(file)}
            case "mlserver":
                command = [str(PEERS_PYTHON.parent / "mlserver"), "start", str(_mlserver(folder, file, port, batch))]
                environment = {"PYTHONPATH": str(APPS)}
                ready = "/v2/models/m/ready"
            case _:
                raise ValueError(self.kind)
        with launch(self.name, command, port=port, ready=ready, core=core, environment=environment, cwd=cwd) as found:
            yield found


OURS = Subject("edgesmith", "ours")
PEERS = (
    Subject("edgesmith under uvicorn", "asgi"),
    Subject("FastAPI, plain", "fastapi"),
    Subject("LitServe", "litserve"),
    Subject("MLServer", "mlserver"),
)


def _mlserver(folder: Path, model: Path, port: int, batch: int) -> Path:
    """Write MLServer's settings; its worker processes are off, which is its fastest way for one core."""
    place = folder / "mlserver"
    place.mkdir(exist_ok=True)
    settings = {
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "host": "127.0.0.1",
        "parallel_workers": 0,
        "debug": False,
    }
    one: dict[str, Any] = {"name": "m", "implementation": "mlserver_runtime.Runtime", "parameters": {"uri": str(model)}}
    if batch > 1:
        one |= {"max_batch_size": batch, "max_batch_time": 0.002}
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(json.dumps(one))
    return place


class EngineChild:
    """The engine alone, in a process on the server's core, called in a loop."""

    def __init__(self, model: Path, folder: Path, threads: int = 1) -> None:
        self._folder = folder
        script = Path(__file__).with_name("engine_child.py")
        self._process = subprocess.Popen(
            ["taskset", "-c", str(cores()[0]), sys.executable, str(script), str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._read()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def keep(self, name: str, arrays: Arrays) -> Path:
        """Store arrays for `run`."""
        path = self._folder / f"{name}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    def run(self, arrays: Path, *, calls: int | None = None, seconds: float | None = None) -> tuple[int, float, float]:
        """Call it so often or so long; give the calls, and CPU and wall seconds of all together."""
        told: dict[str, Any] = {"arrays": str(arrays)} | ({"calls": calls} if calls else {"seconds": seconds})
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        found = self._read()
        return found["calls"], found["cpu_ns"] / 1e9, found["wall_ns"] / 1e9

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine's process has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def identity(folder: Path) -> Path:
    """A model of [batch, 128] int64 that gives back what it takes."""
    return _graph(folder / "identity.onnx", "Identity", "INT64", ["batch", 128], ["batch", 128])


def pooling(folder: Path) -> Path:
    """A model of [batch, 3, 224, 224] float32 that takes the mean of each channel."""
    return _graph(folder / "pooling.onnx", "GlobalAveragePool", "FLOAT", ["batch", 3, 224, 224], ["batch", 3, 1, 1])


def _graph(path: Path, operator: str, dtype: str, shape: Sequence[Any], out_shape: Sequence[Any]) -> Path:
    import onnx
    from onnx import TensorProto, helper

    kind = TensorProto.DataType.Value(dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, out_shape)],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path)
    return path
