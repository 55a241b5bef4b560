"""`/predict`: whatever people without a client send, they are answered, or told what was expected."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.tasks import FeatureExtraction, TextClassification, load_task
from serve.config import Limits, ModelSpec, ServerConfig
from tests.serve.models_built import affine, save, write
from tests.serve.protocols.oip.conftest import encoder_folder
from tests.serve.protocols.openai.conftest import OpenAiServing, writer_path

__all__ = ["writer_path"]

TEXTS = ("A late goal won the cup.", "Shares fell.", "The new phone is out.")
MAX_ROWS = 70


def colours() -> onnx.GraphProto:
    """Which of red, green and blue a picture has most of."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    return helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32) * 4, "w")],
    )


def colours_folder(folder: Path) -> Path:
    save(colours(), folder / "model.onnx")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": 16})
    )
    labels = {"0": "red", "1": "green", "2": "blue"}
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["ViTForImageClassification"], "model_type": "vit", "id2label": labels})
    )
    write(folder)
    return folder


@pytest.fixture(scope="module")
def serving(
    classifier_path: Path, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenAiServing]:
    root = tmp_path_factory.mktemp("served")
    second = shutil.copytree(classifier_path, root / "second")
    save(affine(), root / "affine" / "model.onnx")
    write(root / "affine")
    models = (
        ModelSpec(name="news", path=classifier_path, threads=1),
        ModelSpec(name="news", path=second, version="2", threads=1),
        ModelSpec(name="encoder", path=encoder_folder(root / "encoder", minilm_folder), threads=1),
        ModelSpec(name="colours", path=colours_folder(root / "colours"), threads=1),
        ModelSpec(name="affine", path=root / "affine", threads=1),
    )
    with OpenAiServing(ServerConfig(models=models, limits=Limits(max_rows=MAX_ROWS))) as running:
        yield running


def predicted(serving: OpenAiServing, body: bytes | str, path: str = "/predict/news", **headers: str) -> list[Any]:
    answer = serving.ask(path, body.encode() if isinstance(body, str) else body, **headers)
    assert answer.status == 200, answer.body
    assert answer.value["model"] == path.split("/")[2].partition("?")[0]
    found: list[Any] = answer.value["predictions"]
    return found


def refused(
    serving: OpenAiServing, body: bytes | str, path: str = "/predict/news", status: int = 400, **headers: str
) -> str:
    answer = serving.ask(path, body.encode() if isinstance(body, str) else body, **headers)
    assert answer.status == status, answer.body
    return str(answer.value["error"])


@pytest.fixture(scope="module")
def wanted(serving: OpenAiServing, classifier_path: Path) -> list[dict[str, Any]]:
    """What the engine says of the texts."""
    from edgesmith.artifact import open_artifact
    from serve.runtime import open_engine

    task, engine = load_task(classifier_path), open_engine(open_artifact(classifier_path))
    assert isinstance(task, TextClassification)
    arrays = task.encode(TEXTS)
    found = task.decode(engine.run(arrays), arrays, TEXTS)
    engine.close()
    return found


def close(found: list[Any], wanted: list[Any]) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        assert one["score"] == max(one["scores"].values())


ROWS = [{"text": text} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("kind", "body", "num"),
    [
        ("text/plain", TEXTS[0], 1),
        ("text/plain; charset=utf-8", TEXTS[0] + "\n", 1),
        ("application/json", json.dumps(TEXTS[0]), 1),
        ("application/json", json.dumps(ROWS[0]), 1),
        ("application/json", json.dumps(TEXTS), 3),
        ("application/json", json.dumps([TEXTS[0], *ROWS[1:]]), 3),
        ("application/json", json.dumps({"instances": ROWS}), 3),
        ("application/json", json.dumps([{**row, "label": None, "id": 5} for row in ROWS]), 3),
        ("application/x-ndjson", LINES, 3),
        ("application/jsonl", LINES.replace("\n", "\r\n\r\n"), 3),
        ("text/csv", "id,text\n" + "".join(f'{index},"{text}"\r\n' for index, text in enumerate(TEXTS)), 3),
        ("text/tab-separated-values", "text\tlabel\n" + "".join(f"{text}\tsport\n" for text in TEXTS), 3),
        ("application/x-www-form-urlencoded", TEXTS[0], 1),
        ("application/x-www-form-urlencoded", json.dumps(TEXTS), 3),
        ("application/x-www-form-urlencoded", "text=A+late%20goal+won+the+cup.", 1),
        ("application/octet-stream", TEXTS[0], 1),
    ],
)
def test_texts_and_rows_of_every_kind_are_classified(
    serving: OpenAiServing, wanted: list[Any], kind: str, body: str, num: int
) -> None:
    close(predicted(serving, body, content_type=kind), wanted[:num])


def test_pairs_of_texts_are_one_row_each(serving: OpenAiServing) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    alone, paired = predicted(serving, json.dumps([TEXTS[0], pair]))
    assert alone["scores"] != paired["scores"]
    table = f"text,text_pair\n{TEXTS[0]},{TEXTS[1]}\n"
    close(predicted(serving, table, content_type="text/csv"), [paired])
    similar = predicted(serving, json.dumps([pair, {"text": "a", "text_pair": "a"}]), "/predict/encoder")
    assert similar[1]["similarity"] == pytest.approx(1)
    assert similar[0]["similarity"] < 1


def test_many_rows_are_answered_in_order(serving: OpenAiServing, wanted: list[Any]) -> None:
    texts = [TEXTS[index % 3] + " and so on" * (index % 3 * 20) for index in range(MAX_ROWS)]
    found = predicted(serving, json.dumps(texts))
    assert len(found) == MAX_ROWS
    close(found[:1], wanted[:1])
    alone = [predicted(serving, text)[0] for text in texts[:3]]
    for index, one in enumerate(found):
        assert one["scores"] == pytest.approx(alone[index % 3]["scores"], abs=1e-5), index


def test_embeddings_are_numbers(serving: OpenAiServing) -> None:
    (found,) = predicted(serving, TEXTS[0], "/predict/encoder")
    assert len(found["embedding"]) == 8
    line = serving.ask("/predict/encoder", TEXTS[0].encode(), accept="text/plain").body.decode()
    assert [float(number) for number in line.split("\t")] == pytest.approx(found["embedding"], rel=1e-5)
    assert FeatureExtraction.name == "feature-extraction"


def test_plain_text_is_answered_on_request(serving: OpenAiServing, wanted: list[Any]) -> None:
    answer = serving.ask("/predict/news", json.dumps(TEXTS).encode(), accept="text/plain")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.split("\t") for line in answer.body.decode().splitlines()]
    assert [label for label, _ in lines] == [one["label"] for one in wanted]
    assert [float(score) for _, score in lines] == pytest.approx([one["score"] for one in wanted], abs=1e-5)


def test_versions_and_requests_are_named(serving: OpenAiServing) -> None:
    for path, version in (("/predict/news/versions/1", "1"), ("/predict/news", "2")):
        answer = serving.ask(path, b"Shares fell.", x_request_id="mine")
        assert answer.value["version"] == answer.headers["x-model-version"] == version
        assert answer.headers["x-request-id"] == "mine"
    refused(serving, "a", "/predict/news/versions/9", 404)
    refused(serving, "a", "/predict/nobody", 404)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("text/plain", "", "empty"),
        ("text/plain", " \n", "blanks"),
        ("text/plain", b"caf\xe9", "byte 0xe9 at 3 is not UTF-8"),
        ("text/plain", b"a\0b", "NUL"),
        ("text/plain; charset=utf-16", "a", "utf-16"),
        ("application/json", "{", "no JSON"),
        ("application/json", "[]", "no rows"),
        ("application/json", "5", "row 1 is 5, neither a text nor an object"),
        ("application/json", '["a", null]', "row 2 is None"),
        ("application/json", '["a", {"txt": "b"}]', "row:2: has no column 'text'; it has 'txt'"),
        ("application/json", '{"text": 5}', "'text' is a int, not a text"),
        ("application/json", '{"instances": "a"}', "not a list"),
        ("application/json", '"\\ud800"', "no JSON"),
        ("application/json", "[" * 101, "101"),
        ("application/x-ndjson", '"a"\n{"text":\n', "line 2"),
        ("text/csv", "text\n", "no rows"),
        ("text/csv", "text,label\na\n", "line 2: 1 fields, but the header has 2"),
        ("text/csv", "text,text\na,b\n", "one twice"),
        ("text/csv", 'text\n"open', "line 2"),
        ("application/xml", "<a/>", "application/xml"),
        ("image/png", b"\x89PNG", "row 1 is a picture; this model reads texts"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(serving: OpenAiServing, kind: str, body: Any, said: str) -> None:
    assert said in refused(serving, body, content_type=kind)


def test_limits_and_options_are_named(serving: OpenAiServing) -> None:
    assert f"more than {MAX_ROWS} rows" in refused(serving, json.dumps(["a"] * (MAX_ROWS + 1)), status=413)
    assert "300,000 characters" in refused(serving, json.dumps(["a", "b" * 300_000]), status=413)
    assert "topp" in refused(serving, "a", "/predict/news?topp=1")
    assert "top is '0'" in refused(serving, "a", "/predict/news?top=0")
    assert "/v2/models/affine/infer" in refused(serving, "a", "/predict/affine")


def picture(colour: str, form: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, form)
    return buffer.getvalue()


def test_pictures_are_classified(serving: OpenAiServing) -> None:
    pytest.importorskip("PIL")
    path = "/predict/colours"
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        (found,) = predicted(serving, picture("green"), path, content_type=kind)
        assert found["label"] == "green"
        assert set(found["scores"]) == {"red", "green", "blue"}
    assert predicted(serving, picture("blue", "JPEG"), path, content_type="image/jpeg")[0]["label"] == "blue"
    packed = [base64.b64encode(picture(colour)).decode() for colour in ("red", "blue")]
    rows = [{"image": f"data:image/png;base64,{packed[0]}"}, {"b64": packed[1]}]
    assert [one["label"] for one in predicted(serving, json.dumps({"instances": rows}), path)] == ["red", "blue"]
    (best,) = predicted(serving, picture("red"), path + "?top=1")
    assert list(best["scores"]) == ["red"]


def test_pictures_that_are_none_are_refused(serving: OpenAiServing) -> None:
    pytest.importorskip("PIL")
    path = "/predict/colours"
    assert "row 1 is no picture" in refused(serving, "a text", path)
    assert "cannot be read" in refused(serving, picture("red")[:60], path, content_type="image/png")
    assert "no base64" in refused(serving, json.dumps([{"image": "?"}]), path)


def test_curl_needs_no_header(serving: OpenAiServing) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    address = f"http://{serving.address}/predict/news"
    done = subprocess.run([curl, "-sS", address, "-d", "Shares fell."], capture_output=True, check=True, timeout=30)
    assert json.loads(done.stdout)["predictions"][0]["label"] in ("business", "sport", "tech")


def test_language_models_write(writer_path: Path) -> None:
    spec = ModelSpec(name="writer", path=writer_path, threads=1)
    with OpenAiServing(ServerConfig(models=(spec,), limits=Limits(max_tokens=50))) as serving:
        path = "/predict/writer"
        (found,) = predicted(serving, "the age of", path + "?max_tokens=7")
        assert found["num_tokens"] == 7
        assert found["finish_reason"] == "length"
        rows = [{"prompt": "the age of"}, {"messages": [{"role": "user", "content": "Hello"}]}]
        both = predicted(serving, json.dumps(rows), path + "?max_tokens=7")
        assert both[0]["text"] == found["text"]
        assert both[1]["text"] != found["text"]
        assert (
            serving.ask(path + "?max_tokens=7", b"the age of", accept="text/plain").body.decode()
            == found["text"] + "\n"
        )
        drawn = [predicted(serving, "the", f"{path}?temperature=2&seed={seed}")[0]["text"] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert "200,000 characters" in refused(serving, " a" * 100_000, path, 413)
        assert "from 1 to 50" in refused(serving, "a", path + "?max_tokens=51")
        assert "no number" in refused(serving, "a", path + "?seed=x")
        assert "temperature" in refused(serving, "a", path + "?temperature=-1")
        assert "none of the columns" in refused(serving, json.dumps([{"txt": "a"}]), path)
