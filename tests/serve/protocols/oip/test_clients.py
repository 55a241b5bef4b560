"""Clients as they are installed, each in an interpreter of its own."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.load.plan import LoadPlan
from bench.load.protocols import open_checker, prepare_target
from bench.load.schedule import constant
from tests.serve.protocols.oip.conftest import TOKEN
from tests.serve.protocols.oip.serving import Serving, run_client

TRITON = """
import asyncio, json, sys
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

address, token = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("news") and client.is_model_ready("news:text", "2")
about = client.get_server_metadata()
assert "binary_tensor_data" in about["extensions"], about
config = client.get_model_config("affine")
assert client.get_inference_statistics("affine")["model_stats"][0]["name"] == "affine"
names = {one["name"] for one in client.get_model_repository_index()}
admin = {"authorization": "Bearer " + token}
client.unload_model("image", headers=admin)
assert not client.is_model_ready("image")
client.load_model("image", headers=admin)
assert client.is_model_ready("image")
try:
    client.load_model("image", headers=admin, config="{}")
    raise AssertionError("a configuration was accepted")
except InferenceServerException as error:
    assert "brings a model" in str(error), error
assert client.get_system_shared_memory_status() == []
client.unregister_system_shared_memory()

def all_types():
    rng = np.random.default_rng(0)
    for entry in client.get_model_metadata("identity")["inputs"]:
        datatype = entry["datatype"]
        if datatype == "BYTES":
            yield entry["name"], datatype, np.array([["a", "\\u00e4"], ["", "d"]], dtype=np.object_)
        else:
            yield entry["name"], datatype, rng.integers(0, 2, (2, 2)).astype(triton_dtype(datatype))

from tritonclient.utils import triton_to_np_dtype as triton_dtype

def inputs(is_binary):
    made = []
    for name, datatype, array in all_types():
        tensor = triton.InferInput(name, list(array.shape), datatype)
        made.append(tensor.set_data_from_numpy(array, binary_data=is_binary))
    return made

def check(result):
    for name, datatype, array in all_types():
        found = result.as_numpy(name + "_out")
        if datatype == "BYTES":
            decoded = [x.decode() if isinstance(x, bytes) else x for x in found.ravel().tolist()]
            assert decoded == array.ravel().tolist(), decoded
        else:
            assert found.dtype == array.dtype and (found == array).all(), name

for is_binary_in in (True, False):
    for is_binary_out in (True, False):
        outputs = [triton.InferRequestedOutput(n + "_out", binary_data=is_binary_out) for n, _, _ in all_types()]
        check(client.infer("identity", inputs(is_binary_in), outputs=outputs, request_id="r"))
for compression in ("gzip", "deflate"):
    check(client.infer("identity", inputs(True), request_compression_algorithm=compression,
                       response_compression_algorithm=compression, timeout=5_000_000, priority=1))
check(client.async_infer("identity", inputs(True)).get_result())

text = triton.InferInput("text", [2], "BYTES")
text.set_data_from_numpy(np.array(["A late goal won the cup.", "Shares fell."], dtype=np.object_))
result = client.infer("news:text", [text], outputs=[triton.InferRequestedOutput("scores", class_count=2)])
classes = result.as_numpy("scores")
try:
    client.infer("nothing", [text])
    raise AssertionError("a model that is not there has answered")
except InferenceServerException as error:
    assert error.status() == "404" and "nothing" in error.message(), error

async def ask():
    async with triton_aio.InferenceServerClient(address) as other:
        assert await other.is_model_ready("identity")
        results = await asyncio.gather(*(other.infer("identity", inputs(True)) for _ in range(8)))
        for one in results:
            check(one)
asyncio.run(ask())
print(json.dumps({"names": sorted(names), "classes": [[x.decode() for x in row] for row in classes],
                  "dims": config["input"][0]["dims"]}))
"""

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferRequest, InferInput
from kserve.inference_client import RESTConfig

async def ask(base):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, "affine") and not await client.is_model_ready(base, "nothing")
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    found = []
    for use_binary in (False, True):
        tensor = InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(array, binary_data=use_binary)
        answer = await client.infer(base, InferRequest(model_name="affine", infer_inputs=[tensor]), model_name="affine")
        found.append(np.asarray(answer.outputs[0].as_numpy()).ravel().tolist())
    half = InferInput("text", [1], "BYTES", data=["Shares fell."])
    texts = await client.infer(base, InferRequest(model_name="news:text", infer_inputs=[half]), model_name="news:text")
    await client.close()
    return {"found": found, "outputs": [output.name for output in texts.outputs]}
print(json.dumps(asyncio.run(ask(sys.argv[1]))))
"""


def test_tritonclient_works_unmodified(serving: Serving) -> None:
    found = run_client(TRITON, serving.address, TOKEN)
    assert {"news", "news:text", "identity"} <= set(found["names"])
    assert found["dims"] == [4]
    assert [len(row) for row in found["classes"]] == [2, 2]
    assert all(text.count(":") == 2 for row in found["classes"] for text in row)


def test_kserves_client_works_unmodified(serving: Serving) -> None:
    found = run_client(KSERVE, f"http://{serving.address}")
    assert found["found"] == [[43.0, 49.0, 55.0]] * 2
    assert found["outputs"] == ["label", "score", "scores", "logits"]


def test_curl_gets_a_label_for_a_text(serving: Serving) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = '{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["Shares fell."]}]}'
    url = f"http://{serving.address}/v2/models/news:text/infer"
    done = subprocess.run([curl, "-sf", url, "-d", body], capture_output=True, timeout=30, check=True)
    label = json.loads(done.stdout)["outputs"][0]
    assert label["name"] == "label"
    assert label["data"][0] in ("business", "sport", "tech")


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("model", ["affine", "news:text"])
def test_our_own_load_generator_finds_and_checks_it(
    serving: Serving, tmp_path: Path, model: str, is_binary: bool
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"x": np.arange(4.0).tolist(), "text": f"Shares fell by {number}."} for number in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"http://{serving.address}/v2/models/{model}"
    target = prepare_target(LoadPlan(url=url, shape=constant(1.0, 1.0), data=data, batch_size=2, binary=is_binary))
    checker = open_checker(target)
    for index, request in enumerate(target.requests):
        head, _, body = request.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        connection = http.client.HTTPConnection(serving.address, timeout=30)
        connection.request("POST", line.split()[1], body, dict(header.split(": ", 1) for header in headers))
        answer = connection.getresponse()
        checker.check(index, answer.status, answer.getheader, answer.read())
        connection.close()
