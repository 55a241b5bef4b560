"""The whole server, as a user starts, asks and stops it."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.serve.served import serving, statuses

TEXT = "Shares fell after the bank cut its forecast."


def ask(url: str, path: str, body: object | None = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def end(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a server that ends by itself."""
    command = [sys.executable, "-m", "serve", *arguments, "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_classifier_is_served_from_its_folder_to_a_label(classifier_path: Path, tmp_path: Path):
    with serving(tmp_path, f"news={classifier_path}") as server:
        assert ask(server.url, "/v2/health/ready") == {"ready": True}
        answer = ask(server.url, "/predict/news", {"text": TEXT})
        prediction = answer["predictions"][0]
        assert set(prediction) >= {"label", "score"}
        assert ask(server.url, "/v2/models/news")["name"] == "news"
        metrics = urllib.request.urlopen(server.url + "/metrics", timeout=10).read().decode()
        assert 'edgesmith_requests_total{model="news",protocol="predict",reason="ok",version="1"} 1.0' in metrics
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert "ready at http://127.0.0.1:" in server.said


def test_it_says_live_before_its_models_are_there_and_ready_after(classifier_path: Path, tmp_path: Path):
    with serving(tmp_path, f"news={classifier_path}") as server:
        assert list(statuses(server.url, ["/v2/health/live", "/v2/health/ready", "/nowhere"])) == [200, 200, 404]


def test_requests_under_way_are_answered_after_sigterm_and_new_ones_are_not_taken(
    classifier_path: Path, tmp_path: Path
):
    with serving(tmp_path, f"news={classifier_path}", "--max-batch-size", "1") as server:
        place = urlsplit(server.url)
        found: list[int] = []
        started = threading.Barrier(9)

        def send() -> None:
            connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
            connection.connect()
            started.wait()
            body = json.dumps([{"text": TEXT}] * 200)
            connection.request("POST", "/predict/news", body, {"content-type": "application/json"})
            found.append(connection.getresponse().status)

        senders = [threading.Thread(target=send) for _ in range(8)]
        for sender in senders:
            sender.start()
        started.wait()
        while 'reason="ok"' not in (text := urllib.request.urlopen(server.url + "/metrics").read().decode()):
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        for sender in senders:
            sender.join()
        assert found == [200] * 8, text
        assert server.process.wait(20) == 0
        with pytest.raises(OSError):
            socket.create_connection((place.hostname, place.port), timeout=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_loads_it_stops(classifier_path: Path, number: signal.Signals):
    process = subprocess.Popen([sys.executable, "-m", "serve", f"n={classifier_path}", "--port", "0"], stderr=-3)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(20) in (0, -number, 130, 143)  # before Python's handlers are there the signal itself ends it


def test_an_altered_artifact_is_refused_with_its_name_and_code_4(classifier_path: Path, tmp_path: Path):
    copy = shutil.copytree(classifier_path, tmp_path / "copy")
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    done = end(f"news={copy}")
    assert done.returncode == 4
    assert f"{copy}/model.onnx: has" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(classifier_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "serve", f"news={classifier_path}", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["news=/nowhere"], "/nowhere: no such file or folder"),
        ([], "no model is given"),
        (["news=x", "--tls-key", "key.pem"], "TLS needs a certificate and its key"),
        (["news=x", "--split", "news=1"], "is no split"),
    ],
)
def test_what_cannot_be_served_is_said_without_a_traceback(arguments: list[str], said: str):
    done = end(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_two_versions_share_traffic_by_weight_and_stay_with_a_key(classifier_path: Path, tmp_path: Path):
    models = [f"news:{version}={classifier_path}" for version in "12"]
    record = tmp_path / "record.jsonl"
    with serving(tmp_path, *models, "--split", "news=1:1,2:1", "--record", str(record)) as server:

        def version(key: str | None) -> str:
            request = urllib.request.Request(
                server.url + "/predict/news", data=TEXT.encode(), headers={"content-type": "text/plain"}
            )
            if key is not None:
                request.add_header("x-edgesmith-key", key)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.headers["x-model-version"])

        assert {version(None) for _ in range(40)} == {"1", "2"}
        for key in ("anna", "bert", "carla"):
            assert len({version(key) for _ in range(5)}) == 1
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) == 55
    assert TEXT not in record.read_text()


def test_a_split_over_a_version_that_is_not_served_is_refused(classifier_path: Path):
    done = end(f"news={classifier_path}", "--split", "news=1:1,3:1")
    assert done.returncode == 2
    assert "news:3 is asked for, but news has 1" in done.stderr


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(classifier_path: Path, tmp_path: Path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(20)
        with serving(tmp_path / "server", f"news={classifier_path}", NOTIFY_SOCKET=address) as server:
            assert manager.recv(100) == b"READY=1"
            server.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"


def test_the_full_command_line_serves_a_release(classifier_path: Path, tmp_path: Path):
    command = [sys.executable, "-c", "from edgesmith.cli import main; main()", "serve"]
    with serving(tmp_path, f"news={classifier_path}", command=command) as server:
        assert ask(server.url, "/predict/news", TEXT)["predictions"]
