"""`edgesmith load` as a user runs it, against servers that do what real ones do wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgesmith.artifact import read_artifact
from tests.bench.load.conftest import StartServer, start_server

__all__ = ["start_server"]  # a fixture


def edgesmith(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgesmith.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_fast_server_passes_and_leaves_evidence(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(delay_ms=1)
    out = tmp_path / "load"
    done = edgesmith("load", server.url, "--rate", "120", "--duration", "4", "--limit-ms", "2000", "--json", "-o", out)
    assert done.returncode in (0, 3), done.stderr  # 3 where the machine is too busy to send on time
    result = json.loads(done.stdout)
    assert result["load"]["num_failed"] == 0
    assert result["verdict"] == {0: "PASS", 3: "INCONCLUSIVE"}[done.returncode]
    assert read_artifact(out).manifest.step == "load"


def test_a_server_that_refuses_every_other_request_fails(start_server: StartServer) -> None:
    server = start_server(delay_ms=1, fault="503", every=2)
    arguments = ("load", server.url, "--rate", "100", "--duration", "6", "--limit-ms", "5000")
    done = edgesmith(*arguments)
    assert done.returncode in (1, 3), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "http 503" in done.stdout
    as_json = edgesmith(*arguments, "--json")
    assert json.loads(as_json.stdout)["verdict"] == {1: "FAIL", 3: "INCONCLUSIVE"}[as_json.returncode]


def test_without_a_limit_a_failed_request_is_no_success(start_server: StartServer) -> None:
    server = start_server(fault="503", every=3)
    done = edgesmith("load", server.url, "--rate", "30", "--duration", "2")
    assert done.returncode in (1, 3), done.stdout + done.stderr


def test_streams_of_one_token_are_no_damage(start_server: StartServer) -> None:
    server = start_server(num_tokens=1)
    done = edgesmith("load", f"{server.base}/v1", "--rate", "20", "--duration", "2")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert "time to first token" in done.stdout


def test_a_server_that_is_down_is_said_at_once() -> None:
    done = edgesmith("load", "http://127.0.0.1:9/v2/models/news", "--json")
    assert done.returncode == 2
    assert "nobody listens" in json.loads(done.stdout)["error"]


def test_a_secret_header_is_in_no_evidence_and_no_error(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    secret, out = tmp_path / "token", tmp_path / "load"
    secret.write_text("Bearer abc-secret-123\n")
    arguments = ("--rate", "20", "--duration", "1", "--header", f"Authorization:@{secret}", "-o", out)
    done = edgesmith("load", server.url, *arguments)
    assert done.returncode in (0, 3), done.stderr
    assert not [path for path in out.rglob("*") if b"abc-secret" in path.read_bytes()]
    refused = edgesmith("load", server.url, "--header", "abc-secret-123")
    assert refused.returncode == 2
    assert "NAME:VALUE" in refused.stderr
