from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.config import ModelSpec, ServerConfig
from serve.openapi import missing_operations
from serve.openapi.operations import OPERATIONS
from tests.serve.page.running import Running, running

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / ".venv-clients" / "bin" / "schemathesis"
KEY = "a-key-of-this-test"
NAMES = {"model": "news", "version": "1"}


@pytest.fixture(scope="module")
def config(classifier_path: Path) -> ServerConfig:
    spec = ModelSpec(name="news", path=classifier_path, threads=1)
    return ServerConfig(models=(spec,), port=0, drain_s=5)


@pytest.fixture(scope="module")
def server(config: ServerConfig) -> Iterator[Running]:
    with running(config) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    answer = server.ask("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def test_document_has_the_routes_that_are_there_and_no_others(server: Running, document: dict[str, Any]) -> None:
    told = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert told == {(route.method, route.pattern) for route in server.app.router.routes}


def test_every_route_is_described_and_every_description_has_its_route(server: Running) -> None:
    routes = server.app.router.routes
    assert missing_operations(routes) == []
    assert OPERATIONS.keys() == {f"{route.method} {route.pattern}" for route in routes}


def test_references_lead_somewhere_and_names_are_unique(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == document["components"]["schemas"].keys()
    operations = [one["operationId"] for verbs in document["paths"].values() for one in verbs.values()]
    assert len(set(operations)) == len(operations)


def test_parameters_of_a_path_are_those_of_its_pattern(document: dict[str, Any]) -> None:
    for path, verbs in document["paths"].items():
        for operation in verbs.values():
            told = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
            assert told == re.findall(r"\{(\w+)\}", path)


def test_access_is_told(config: ServerConfig) -> None:
    with running(replace(config, api_keys=(KEY,), admin_token="root")) as locked:
        key = {"authorization": f"Bearer {KEY}"}
        paths = locked.ask("GET", "/openapi.json", headers=key).json()["paths"]
        assert paths["/healthz"]["get"]["security"] == []
        assert paths["/live.json"]["get"]["security"] == [{"key": []}]
        assert paths["/v2/repository/models/{model}/load"]["post"]["security"] == [{"admin": []}]
        for path, verbs in paths.items():
            if "get" in verbs and "{" not in path:
                refused = locked.ask("GET", path).status == 401
                assert refused == bool(verbs["get"]["security"]), path


@pytest.mark.slow
def test_schemathesis_finds_no_violation(server: Running, document: dict[str, Any], tmp_path: Path) -> None:
    """Requests that the document allows, and ones that it does not, are answered as it says."""
    if not CLIENT.exists():
        pytest.skip("schemathesis is not in .venv-clients")
    done = fuzz(server.url, document, tmp_path, cases=20)
    assert done.returncode == 0, done.stdout[-12000:]


def fuzz(url: str, document: dict[str, Any], folder: Path, *, cases: int) -> subprocess.CompletedProcess[str]:
    """Send what schemathesis makes of the document; names that it allows are those of the model that is there."""
    for verbs in document["paths"].values():
        for operation in verbs.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in NAMES:
                    parameter["schema"] = {"enum": [NAMES[parameter["name"]]]}
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    command = [
        str(CLIENT),
        "run",
        "openapi.json",
        "--url",
        url,
        "--max-examples",
        str(cases),
        "--phases",
        "examples,coverage,fuzzing",
    ]
    return subprocess.run(
        [*command, "--workers", "1", "--seed", "1", "--no-color", "--continue-on-failure"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# What a schema cannot say is refused with 400, and a server may always be too busy.
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = ["4xx", 503]
"""
