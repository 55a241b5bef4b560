"""KServe's manifests, against KServe's and Kubernetes' own models of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgesmith.artifact import write_artifact
from edgesmith.errors import UnsupportedError, UsageError
from export.serving.kserve import make_manifests, write_kserve
from serve.arguments import make_parser, read_config
from serve.config import ModelSpec, ServerConfig
from tests.serve.protocols.oip.serving import Serving, run_client

IMAGE, PLACE = "registry.example/edgesmith:1", "s3://models/{name}/{version}"
# Every key must be one of the class that stands there, every value of its type; classes check what is required.
VALIDATE = """
import json, re, sys
import kserve.models, kubernetes.client.models
def find(name):
    return getattr(kserve.models, name, None) or getattr(kubernetes.client.models, name)
def make(kind, value, path):
    if found := re.fullmatch(r"[lL]ist\\[(.+)\\]", kind):
        assert type(value) is list, path
        return [make(found[1], one, f"{path}[]") for one in value]
    if found := re.fullmatch(r"[dD]ict[(\\[]str, (.+)[)\\]]", kind):
        assert type(value) is dict, path
        return {key: make(found[1], one, f"{path}.{key}") for key, one in value.items()}
    plain = {"str": str, "int": int, "bool": bool, "object": (str, int)}
    if kind in plain:
        assert isinstance(value, plain[kind]) and (kind != "int" or type(value) is int), (path, kind, value)
        return value
    if kind in ("ResourceQuantity", "IntOrString"):
        return value
    cls = find(kind)
    names = {key: name for name, key in cls.attribute_map.items()}
    unknown = value.keys() - names.keys()
    assert not unknown, f"{path}: {kind} has no {unknown}"
    return cls(**{names[k]: make(cls.openapi_types[names[k]], one, f"{path}.{k}") for k, one in value.items()})
kinds = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
faults = []
for document in json.load(open(sys.argv[1])):
    try:
        made = make(kinds[document["kind"]], document, document["kind"])
        assert made.to_dict()["metadata"]["name"] == document["metadata"]["name"]
    except (AssertionError, ValueError) as error:
        faults.append(str(error))
print(json.dumps(faults))
"""


def faults_of(documents: list[dict[str, Any]], tmp_path: Path) -> list[str]:
    path = tmp_path / "documents.json"
    path.write_text(json.dumps(documents))
    return run_client(VALIDATE, str(path))


@pytest.fixture
def specs(classifier_path: Path, tmp_path: Path) -> list[ModelSpec]:
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "model.gguf").write_bytes(b"GGUF" * 1000)
    write_artifact(tmp_path / "phone", kind="gguf", step="test")
    return [ModelSpec(name="news", path=classifier_path), ModelSpec(name="phone", path=tmp_path / "phone", version="3")]


def test_kserves_own_models_take_every_field(specs: list[ModelSpec], tmp_path: Path):
    made = write_kserve(specs, tmp_path / "out" / "all.yaml", image=IMAGE, storage_uri=PLACE, threads=2)
    documents = list(yaml.safe_load_all(made.path.read_text()))
    assert [one["kind"] for one in documents] == ["ServingRuntime"] * 2 + ["InferenceService"] * 2
    assert (made.runtimes, made.services) == (("edgesmith-gguf", "edgesmith-onnx"), ("news", "phone"))
    assert faults_of(documents, tmp_path) == []


def test_the_validation_finds_what_is_wrong(specs: list[ModelSpec], tmp_path: Path):
    changes: list[tuple[tuple[Any, ...], Any]] = [
        (("spec", "containers", 0, "securityContex"), {}),
        (("spec", "containers", 0, "ports", 0, "containerPort"), "8080"),
        (("spec", "containers", 0, "readinessProbe", "httpGet", "url"), "/"),
        (("spec", "supportedModelFormats", 0, "autoSelect"), "no"),
    ]
    documents = []
    for path, value in changes:
        document = make_manifests(specs, image=IMAGE, storage_uri=PLACE)[0]
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        documents.append(document)
    assert len(faults_of(documents, tmp_path)) == len(changes)


def test_each_service_names_a_runtime_of_its_format_and_protocol(specs: list[ModelSpec]):
    documents = make_manifests(specs, image=IMAGE, storage_uri=PLACE)
    runtimes = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "ServingRuntime"}
    for one in documents[len(runtimes) :]:
        model = one["spec"]["predictor"]["model"]
        runtime = runtimes[model["runtime"]]
        formats = [{key: known[key] for key in ("name", "version")} for known in runtime["supportedModelFormats"]]
        assert model["modelFormat"] in formats
        assert model["protocolVersion"] in runtime["protocolVersions"]
    assert documents[-1]["spec"]["predictor"]["model"]["storageUri"] == "s3://models/phone/3"


def test_the_containers_command_line_is_one_that_the_server_takes(specs: list[ModelSpec]):
    [container] = make_manifests(specs, image=IMAGE, storage_uri=PLACE)[0]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "serve"]
    arguments = [one.replace("{{.Name}}", "phone") for one in container["args"]]
    config = read_config(make_parser().parse_args(arguments), {})
    assert (config.models[0].name, str(config.models[0].path)) == ("phone", "/mnt/models")
    ports = {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")}
    assert ports == {container["ports"][0]["containerPort"]} == {config.port}
    assert config.host == "0.0.0.0"


def test_probes_are_answered_without_a_key(specs: list[ModelSpec]):
    [container] = make_manifests(specs, image=IMAGE, storage_uri=PLACE)[0]["spec"]["containers"]
    with Serving(ServerConfig(models=(specs[0],), api_keys=("a-key-of-16-letters",))) as server:
        for probe in ("readinessProbe", "livenessProbe"):
            assert server.ask(container[probe]["httpGet"]["path"]).status == 200
        assert server.ask("/v2/models/news").status == 401


def test_the_container_may_do_next_to_nothing(specs: list[ModelSpec]):
    [container] = make_manifests(specs, image=IMAGE, storage_uri=PLACE)[0]["spec"]["containers"]
    context = container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": None}, "no image is named"),
        ({"storage_uri": None}, "no place is named"),
        ({"storage_uri": "s3://models"}, "is one place for 2 models"),
        ({"out": Path("folder")}, "folder.yaml"),
    ],
)
def test_what_is_missing_is_named_with_its_flag(
    specs: list[ModelSpec], tmp_path: Path, changed: dict[str, Any], said: str
):
    given = {"out": tmp_path / "a.yaml", "image": IMAGE, "storage_uri": PLACE} | changed
    with pytest.raises(UsageError, match=said):
        write_kserve(specs, **given)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("name", ["News", "a.b", "1a", "a-", "a" * 54])
def test_a_name_that_kubernetes_does_not_take_is_refused(classifier_path: Path, name: str):
    with pytest.raises(UsageError, match="cannot be the name of an InferenceService"):
        make_manifests([ModelSpec(name=name, path=classifier_path)], image=IMAGE, storage_uri=PLACE)


def test_two_versions_and_bare_files_are_refused(classifier_path: Path):
    two = [ModelSpec(name="news", path=classifier_path, version=one) for one in "12"]
    with pytest.raises(UsageError, match="news is given twice"):
        make_manifests(two, image=IMAGE, storage_uri=PLACE)
    bare = [ModelSpec(name="news", path=classifier_path / "model.onnx")]
    with pytest.raises(UnsupportedError, match="is a bare file"):
        make_manifests(bare, image=IMAGE, storage_uri=PLACE)


def test_the_command_line_writes_them_and_refuses_what_does_not_go_together(classifier_path: Path, tmp_path: Path):
    def edgesmith(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from edgesmith.cli import main; main()", "export", f"news={classifier_path}"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    out = tmp_path / "news.yaml"
    place = ("--image", IMAGE, "--storage-uri", "pvc://models/news", "-o", str(out), "--json")
    done = edgesmith("--for", "kserve", *place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"] == ["news"]
    assert out.is_file()
    done = edgesmith("--for", "kserve", "--format", "onnx", *place)
    assert done.returncode == 2
    assert "--format means nothing to --for kserve" in done.stderr
