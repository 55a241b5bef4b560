"""Clients as they are installed, and schemathesis: whether they are content."""

from __future__ import annotations

import collections
import http
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from serve_bench.context import Context
from serve_bench.processes import get
from serve_bench.report import exactly
from serve_bench.subjects import ROOT, launch_ours

__all__ = ["run_clients", "run_schemathesis"]

CLIENT_TESTS = (
    "tests/serve/protocols/oip/test_clients.py", "tests/serve/protocols/grpc/test_clients.py",
    "tests/serve/protocols/openai/test_client.py",
)  # fmt: skip
SCHEMATHESIS = ROOT / ".venv-clients" / "bin" / "schemathesis"
SETTINGS = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]\n'


def run_clients(context: Context) -> None:
    """Run the tests that drive tritonclient, kserve's client, openai's and curl against a server of ours."""
    out = context.folder / "clients.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={out}", *CLIENT_TESTS]
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    rows: list[list[object]] = []
    bad = 0
    for case in ElementTree.parse(out).iter("testcase"):
        outcomes = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        bad += bool(outcomes)
        rows.append([case.get("name", ""), ", ".join(outcomes) or "passed", f"{float(case.get('time', 0)):.1f}"])
    context.report.table("Unmodified clients", ("test", "outcome", "s"), rows)
    context.report.check(exactly("unmodified clients: not passed = 0", bad, 0, of=len(rows)))


def run_schemathesis(context: Context) -> None:
    """Send what schemathesis makes of our OpenAPI document; count statuses by endpoint."""
    folder = context.folder / "schemathesis"
    folder.mkdir()
    cases = context.times(context.arguments.max_examples, 5)
    names = {"model": ["m", "t"], "version": ["1"]}
    with launch_ours(f"m={context.classifier}", f"t={context.language}", "--threads", "1") as server:
        document = json.loads(get(server.port, "/openapi.json")[1])
        operations = [one for verbs in document["paths"].values() for one in verbs.values()]
        for one in operations:
            for parameter in one["parameters"]:
                if parameter["name"] in names:
                    parameter["schema"] = {"enum": names[parameter["name"]]}
        for schema in document["components"]["schemas"].values():
            if schema.get("properties", {}).get("model"):
                schema["properties"]["model"] = {"enum": names["model"]}
        (folder / "openapi.json").write_text(json.dumps(document))
        (folder / "schemathesis.toml").write_text(SETTINGS)
        command = [str(SCHEMATHESIS), "run", "openapi.json", "--url", f"http://127.0.0.1:{server.port}"]
        command += ["--max-examples", str(cases), "--phases", "examples,coverage,fuzzing", "--workers", "1"]
        command += ["--seed", "1", "--no-color", "--continue-on-failure", "--report-ndjson-path", "events.ndjson"]
        command += ["--checks", "not_a_server_error", "--request-timeout", "60"]
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        ready = get(server.port, "/v2/health/ready")[0]
    found = _statuses(folder / "events.ndjson")
    rows = [
        [label, sum(counts.values()), ", ".join(f"{code}: {count}" for code, count in sorted(counts.items()))]
        for label, counts in sorted(found.items())
    ]
    bad = sum(count for counts in found.values() for code, count in counts.items() if _is_bad(code))
    total = sum(sum(counts.values()) for counts in found.values())
    context.report.table(
        f"schemathesis, {cases} examples an endpoint",
        ("endpoint", "requests", "by status"),
        rows,
        f"{len(rows)} of {len(operations)} endpoints, {seconds:.0f} s; ready afterwards: {ready}.",
    )
    if not total:
        print(done.stdout[-2000:], done.stderr[-2000:])
    context.report.check(exactly("schemathesis: no answer, or 5xx other than 503", bad, 0, of=total))


def _is_bad(status: int) -> bool:
    """No answer, or a failure of the server that is not its being too busy."""
    return not status or (status >= 500 and status != http.HTTPStatus.SERVICE_UNAVAILABLE)


def _statuses(path: Path) -> dict[str, collections.Counter[int]]:
    """Endpoint → status → answers."""
    found: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for line in path.read_text().splitlines() if path.exists() else ():
        _collect(json.loads(line), found)
    return found


def _collect(event: dict[str, Any], found: dict[str, collections.Counter[int]]) -> None:
    scenario = event.get("ScenarioFinished")
    if scenario is None:
        return
    recorder = scenario["recorder"]
    for interaction in recorder.get("interactions", {}).values():
        answer = interaction.get("response")
        found[recorder["label"]][answer["status_code"] if answer else 0] += 1
