"""A server in a thread: the real models, service, HTTP and gRPC, with this protocol's routes alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
import pytest
import uvloop
from onnx import TensorProto, helper, numpy_helper

from serve.access import Access
from serve.config import ServerConfig
from serve.http.router import Router
from serve.http.server import HttpServer
from serve.metrics import Metrics
from serve.models.repository import Repository
from serve.protocols import oip
from serve.service import Service
from serve.traffic import Traffic

ROOT = Path(__file__).parents[4]
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
TYPES: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
HIDDEN = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The JSON at the body's begin."""
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def tail(self) -> bytes:
        """What is behind the JSON."""
        return self.body[int(self.headers["inference-header-content-length"]) :]


class Serving:
    """A server that runs while the block does.

    Args:
        config: Its ports are taken as free ones.
        has_grpc: Whether it speaks gRPC too.
    """

    def __init__(self, config: ServerConfig, *, has_grpc: bool = False) -> None:
        self.config = config
        self.has_grpc = has_grpc
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.grpc: Any = None

    def __enter__(self) -> Self:
        self.thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    async def _start(self) -> None:
        config = self.config
        self.repository = Repository(config, loop=self.loop)
        traffic = Traffic(config.splits, seed=0)
        self.service = Service(config, self.repository, Metrics(self.repository), traffic)
        access = Access.for_host("127.0.0.1", api_keys=config.api_keys, admin_token=config.admin_token)
        self.http = HttpServer(Router(oip.routes(self.service)), config.limits, access)
        await self.http.start("127.0.0.1", 0)
        await self.repository.start()
        if self.has_grpc:
            from serve.protocols.grpc import GrpcServer

            self.grpc = GrpcServer(self.service, access)
            await self.grpc.start("127.0.0.1", 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "http"):
            self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def _stop(self) -> None:
        if self.grpc is not None:
            await self.grpc.stop(5)
        await self.http.drain(5)
        await self.repository.close(5)
        await self.loop.shutdown_default_executor()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something on the loop, and give what comes of it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    @property
    def address(self) -> str:
        """Host and port of HTTP."""
        return "{}:{}".format(*self.http.address)

    @property
    def grpc_address(self) -> str:
        """Host and port of gRPC."""
        return "{}:{}".format(*self.grpc.address)

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a GET, or a POST with a body; underscores in names of headers are hyphens."""
        request = urllib.request.Request(f"http://{self.address}{path}", data=body)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(
                    answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read()
                )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {key.lower(): value for key, value in error.headers.items()}, error.read())

    def infer(self, model: str, message: Any, tail: bytes = b"", **headers: str) -> Answer:
        """Send an inference request, binary if there is something behind the JSON."""
        head = json.dumps(message).encode()
        if tail:
            headers["inference_header_content_length"] = str(len(head))
        return self.ask(f"/v2/models/{model}/infer", head + tail, **headers)


def run_client(code: str, *arguments: str) -> Any:
    """Run a script with the clients' own interpreter, and give the JSON that it prints at last."""
    if not CLIENTS.exists():
        pytest.skip("there is no .venv-clients with tritonclient and kserve")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "GRPC_VERBOSITY": "ERROR"}
    done = subprocess.run(
        [str(CLIENTS), "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def identity() -> onnx.GraphProto:
    """One input of every datatype, [batch, width], each given back with `_out` behind its name."""
    names = [kind.lower() for kind in TYPES]
    return helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names],
        "identity",
        [helper.make_tensor_value_info(kind.lower(), number, ["batch", "width"]) for kind, number in TYPES.items()],
        [
            helper.make_tensor_value_info(f"{kind.lower()}_out", number, ["batch", "width"])
            for kind, number in TYPES.items()
        ],
    )


def echo(name: str, kind: str, shape: list[int | str]) -> onnx.GraphProto:
    """One input that is given back as `y`."""
    return helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "echo",
        [helper.make_tensor_value_info(name, TYPES[kind], shape)],
        [helper.make_tensor_value_info("y", TYPES[kind], shape)],
    )


def encoder(vocabulary_size: int) -> onnx.GraphProto:
    """A state for every token: the smallest graph with a BERT encoder's signature."""
    rng = np.random.default_rng(1)
    constants: dict[str, Callable[[], Any]] = {
        "embeddings": lambda: rng.normal(size=(vocabulary_size, HIDDEN)).astype(np.float32),
        "types": lambda: rng.normal(size=(2, HIDDEN)).astype(np.float32),
        "two": lambda: np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["tokens"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["tokens", "kinds"], ["states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["weights"]),
        helper.make_node("Mul", ["states", "weights"], ["last_hidden_state"]),
    ]
    axes = ["batch", "sequence"]
    return helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, axes)
            for name in ("input_ids", "token_type_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, HIDDEN])],
        [numpy_helper.from_array(value(), name) for name, value in constants.items()],
    )
