"""A tagger is served by every protocol that takes texts, and its drift is watched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgesmith.artifact import open_artifact
from edgesmith.tasks import load_task
from serve.config import ModelSpec, ServerConfig
from serve.drift import DriftMonitor, make_reference
from serve.drift.windows import DriftSettings
from serve.models.job import Job
from serve.runtime import open_engine
from tests.serve.page.running import Running, running
from tests.serve.protocols.grpc.test_grpc import Client
from tests.serve.protocols.oip.serving import Serving
from tests.serve.tagger_built import TAGS, tagger_folder

TEXT = "From Paris to New York in 36 hours, 😀 said Ann."
FOUND = [("Paris", "LOC"), ("New York", "LOC"), ("36", "NUM")]


def said(entities: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["text"], one["label"]) for one in entities]


@pytest.fixture(scope="module")
def folder(minilm_folder: Path, news_rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [row["text"][:200] for row in news_rows[:120]]
    return tagger_folder(tmp_path_factory.mktemp("tagger") / "model", minilm_folder, texts).folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    config = ServerConfig(models=(ModelSpec(name="places", path=folder, threads=1),), port=0, drain_s=5)
    with running(config) as found:
        yield found


def predicted(server: Running, body: Any, **headers: str) -> list[dict[str, Any]]:
    answer = server.ask("POST", "/predict/places", json.dumps(body), {"content-type": "application/json", **headers})
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def infer(server: Running, name: str, inputs: list[dict[str, Any]]) -> tuple[int, Any]:
    answer = server.ask("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": inputs}))
    return answer.status, answer.json()


def texts(*given: str, name: str = "text") -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(given)], "data": list(given)}


def test_predict_says_where_each_entity_stands(server: Running) -> None:
    [answer] = predicted(server, {"text": TEXT})
    assert said(answer["entities"]) == FOUND
    for one in answer["entities"]:
        assert TEXT[one["start"] : one["end"]] == one["text"]
        assert 0.9 < one["score"] <= 1
    plain = server.ask("POST", "/predict/places", TEXT.encode(), {"content-type": "text/plain", "accept": "text/plain"})
    assert plain.body == b"LOC Paris\tLOC New York\tNUM 36\n"


def test_words_are_tagged_as_they_are_given(server: Running) -> None:
    [answer] = predicted(server, {"tokens": ["Paris", "12"]})
    assert [tag for _, _, tag in answer["words"]] == ["B-LOC", "B-NUM"]


def test_texts_of_all_lengths_at_once_are_answered_as_alone(server: Running) -> None:
    given = [f"{'word ' * (7 * index)}Paris, {index}." for index in range(24)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda text: predicted(server, {"text": text}), given))
    together = predicted(server, [{"text": text} for text in given])
    for index, (alone, other) in enumerate(zip(answers, together, strict=True)):
        assert said(alone[0]["entities"]) == said(other["entities"]) == [("Paris", "LOC"), (str(index), "NUM")]


@pytest.mark.parametrize("name", ["places", "places:text"])
def test_inference_of_texts_gives_entities_as_json(server: Running, name: str) -> None:
    long = "word " * 450 + TEXT  # looked at on another thread
    status, answer = infer(server, name, [texts(TEXT, "Nothing.", long)])
    assert status == 200, answer
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("entities", "BYTES", [3])
    assert [said(json.loads(one)) for one in output["data"]] == [FOUND, [], FOUND]


def test_metadata_names_what_is_answered_and_asked(server: Running) -> None:
    metadata = server.ask("GET", "/v2/models/places:text").json()
    assert metadata["platform"] == "edgesmith_token-classification"
    assert [one["name"] for one in metadata["inputs"]] == ["text"]
    assert metadata["outputs"] == [{"name": "entities", "datatype": "BYTES", "shape": [-1]}]
    config = server.ask("GET", "/v2/models/places:text/config").json()
    assert [one["name"] for one in config["input"]] == ["text"]


def test_a_second_text_is_refused(server: Running) -> None:
    status, answer = infer(server, "places", [texts(TEXT), texts("b", name="text_pair")])
    assert status == 400
    assert "'text_pair' does not go with texts" in answer["error"]


def test_vectors_are_refused(server: Running) -> None:
    answer = server.ask("POST", "/v1/embeddings", json.dumps({"model": "places", "input": TEXT}))
    assert answer.status == 400
    assert "makes no vectors" in answer.body.decode()


def test_page_knows_the_task_and_its_tags(server: Running) -> None:
    [model] = server.ask("GET", "/models.json").json()["models"]
    assert (model["task"], model["labels"]) == ("token-classification", list(TAGS))


def test_grpc_gives_the_same(folder: Path) -> None:
    config = ServerConfig(models=(ModelSpec(name="places", path=folder, threads=1),))
    with Serving(config, has_grpc=True) as serving:
        client = Client(serving.grpc_address)
        tensor = {
            "name": "text",
            "datatype": "BYTES",
            "shape": [1],
            "contents": {"bytes_contents": [TEXT.encode()]},
        }
        answer = client("ModelInfer", model_name="places", inputs=[tensor])
        client.channel.close()
    [data] = answer.raw_output_contents
    assert said(json.loads(data[4:])) == FOUND


def test_other_tags_and_less_certainty_are_drift(folder: Path, news_rows: list[dict[str, str]]) -> None:
    engine, task = open_engine(open_artifact(folder)), load_task(folder)
    usual = [row["text"][:200] for row in news_rows[:400]]
    reference = make_reference(engine, task, usual)
    label = next(feature for feature in reference.features if feature.name == "label")
    assert label.labels == TAGS
    assert sum(label.counts) == len(usual)
    assert label.counts[0] > 0.8 * len(usual)
    states = {}
    for name, given in (("usual", usual), ("numbers", ["12 34 56 in Paris"] * 200)):
        clock = iter(range(0, 10**15, 10**10))
        monitor = DriftMonitor(
            reference, task, settings=DriftSettings(window_rows=100), clock_ns=lambda clock=clock: next(clock)
        )
        for index, text in enumerate(given[:200]):
            arrays = task.encode([text])
            job = Job(arrays, lambda job: None, 1, 0)
            job.outputs, job.finished_ns = engine.run(arrays), index * 10**9
            monitor.observe(job)
            monitor.work()
        assert monitor.num_unread == 0
        states[name] = {look.feature.name: look.state for look in monitor.looks}
        monitor.close()
    engine.close()
    assert states["numbers"]["label"] == states["numbers"]["confidence"] == "alarm"
    assert states["usual"]["label"] == "ok"
