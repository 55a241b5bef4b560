"""The server on Ray Serve: on two nodes where Ray is installed, and what is refused wherever it is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgesmith.artifact import open_artifact
from edgesmith.errors import MissingExtraError, UsageError
from edgesmith.tasks import load_task
from serve.config import ModelSpec, ServerConfig
from serve.places import run_at
from serve.ray_deployment import deployment
from serve.runtime import open_engine

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-ray" / "bin" / "python"
TEXTS = ["Shares fell after the bank cut its forecast.", "A late goal won the cup.", "The new phone is out."]
needs_ray = pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-ray with ray[serve]")


def config_with(**values: Any) -> ServerConfig:
    return ServerConfig(models=(ModelSpec(name="news", path=Path("news")),), **values)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"grpc_port": 0}, "--grpc-port"),
        ({"tls_certificate": Path("a.pem")}, "--tls-certificate"),
        ({"repository": Path("models")}, "--repository"),
        ({"admin_token": "token"}, "--admin-token"),
        ({"record_to": Path("record.jsonl")}, "--record"),
    ],
)
def test_what_replicas_cannot_each_do_on_their_own_is_refused(values: dict[str, Any], flag: str):
    with pytest.raises(UsageError, match=f"{flag} means nothing on Ray"):
        deployment(config_with(**values))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"edgesmith\[ray\]"):
        deployment(config_with())


@pytest.mark.parametrize(
    ("place", "replicas", "said"),
    [(None, 2, "--replicas 2 needs"), ("ray", 0, "there must be at least 1"), ("mars", 1, "--on mars: unknown")],
)
def test_places_and_replicas_that_there_are_not_are_refused(place: str | None, replicas: int, said: str):
    with pytest.raises(UsageError, match=said):
        run_at(config_with(), place, replicas)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def cluster(artifact: Path, log: Path) -> Iterator[dict[str, Any]]:
    command = [str(PYTHON), "-m", "tests.serve.ray_cluster", str(artifact), str(free_port())]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment(), cwd=ROOT
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = next((one for one in process.stdout if one.startswith(b'{"num_nodes"')), None)
        assert line is not None, log.read_text()[-4000:]
        yield json.loads(line)
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()


def ask(url: str, text: str) -> tuple[str, dict[str, Any]]:
    """The replica that answered, and its answer."""
    request = urllib.request.Request(
        f"{url}/predict/news", data=text.encode(), headers={"content-type": "text/plain; charset=utf-8"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.headers["x-edgesmith-replica"]), json.loads(answer.read())["predictions"][0]


@needs_ray
@pytest.mark.slow
def test_two_nodes_answer_as_the_artifact_does(classifier_path: Path, tmp_path: Path):
    task, engine = load_task(classifier_path), open_engine(open_artifact(classifier_path))
    expected = {}
    for text in TEXTS:
        arrays = task.encode([text])
        expected[text] = task.decode(engine.run(arrays), arrays, [text])[0]
    engine.close()
    with cluster(classifier_path, tmp_path / "log") as running:
        assert running["num_nodes"] == 2
        replicas = set()
        for round_of in range(20):
            text = TEXTS[round_of % len(TEXTS)]
            replica, answer = ask(running["url"], text)
            replicas.add(replica)
            assert answer["label"] == expected[text]["label"]
            assert answer["score"] == pytest.approx(max(expected[text]["scores"].values()), abs=1e-5)
        assert len(replicas) == 2  # at most one of them lies on a node
        with urllib.request.urlopen(f"{running['url']}/v2/models/news/ready", timeout=10) as answer:
            assert answer.status == 200


@needs_ray
@pytest.mark.slow
def test_the_command_line_serves_on_ray_until_it_is_told_to_stop(classifier_path: Path, tmp_path: Path):
    command = [str(PYTHON), "-m", "serve", f"news={classifier_path}", "--on", "ray", "--replicas", "1"]
    port = ["--port", str(free_port())]
    announced = tmp_path / "address"
    with (tmp_path / "log").open("wb") as stream:
        process = subprocess.Popen(
            [*command, *port, "--announce", str(announced)], stderr=stream, stdout=stream, env=environment(), cwd=ROOT
        )
    try:
        import time

        deadline = time.monotonic() + 90
        while not announced.exists():
            assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert ask(announced.read_text().strip(), TEXTS[0])[1]["label"]
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        process.kill()
        process.wait()
