"""gRPC clients as they are installed, each in an interpreter of its own."""

from __future__ import annotations

from tests.serve.protocols.oip.conftest import TOKEN
from tests.serve.protocols.oip.serving import Serving, run_client

TRITON = """
import asyncio, json, sys
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

address, token = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("news") and client.is_model_ready("news:text", "2")
about = client.get_server_metadata(as_json=True)
config = client.get_model_config("affine")
assert client.get_inference_statistics("affine").model_stats[0].name == "affine"
names = {one.name for one in client.get_model_repository_index().models}
admin = {"authorization": "Bearer " + token}
client.unload_model("image", headers=admin)
assert not client.is_model_ready("image")
client.load_model("image", headers=admin)

arrays = {}
for entry in client.get_model_metadata("identity").inputs:
    if entry.datatype == "BYTES":
        arrays[entry.name] = np.array([[b"a", b"b"]], dtype=np.object_)
    else:
        arrays[entry.name] = np.array([[1, 0]]).astype(triton_to_np_dtype(entry.datatype))
kinds = {entry.name: entry.datatype for entry in client.get_model_metadata("identity").inputs}

def inputs():
    made = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), kinds[name])
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made

def check(result):
    for name, array in arrays.items():
        found = result.as_numpy(name + "_out")
        assert found.dtype == array.dtype and (found == array).all(), name

check(client.infer("identity", inputs(), request_id="r", timeout=5_000_000, client_timeout=30.0))
check(client.infer("identity", inputs(), outputs=[triton.InferRequestedOutput(n + "_out") for n in arrays],
                   compression_algorithm="gzip"))
text = triton.InferInput("text", [1], "BYTES")
text.set_data_from_numpy(np.array([b"Shares fell."], dtype=np.object_))
result = client.infer("news:text", [text], outputs=[triton.InferRequestedOutput("scores", class_count=2)])
try:
    client.infer("nothing", [text])
    raise AssertionError("a model that is not there has answered")
except InferenceServerException as error:
    assert "NOT_FOUND" in error.status(), error

async def ask():
    async with triton_aio.InferenceServerClient(address) as other:
        for one in await asyncio.gather(*(other.infer("identity", inputs()) for _ in range(8))):
            check(one)
asyncio.run(ask())
print(json.dumps({"about": about, "names": sorted(names), "dims": list(config.config.input[0].dims),
                  "kind": config.config.input[0].data_type,
                  "classes": [x.decode() for x in result.as_numpy("scores")[0]]}))
"""

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferRequest, InferInput

async def ask(address):
    client = InferenceGRPCClient(address)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("affine")
    found = []
    for use_binary in (False, True):
        tensor = InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.arange(4, dtype=np.float32).reshape(1, 4), binary_data=use_binary)
        answer = await client.infer(InferRequest(model_name="affine", infer_inputs=[tensor], request_id="r"))
        assert answer.id == "r" and answer.model_name == "affine"
        found.append(np.asarray(answer.outputs[0].as_numpy()).ravel().tolist())
    text = InferInput("text", [1], "BYTES", data=[b"Shares fell."])
    label = (await client.infer(InferRequest(model_name="news:text", infer_inputs=[text]))).outputs[0]
    await client.close()
    return {"found": found, "label": [label.name, *map(str, np.asarray(label.as_numpy()).ravel().tolist())]}
print(json.dumps(asyncio.run(ask(sys.argv[1]))))
"""


def test_tritonclient_works_unmodified(serving: Serving) -> None:
    found = run_client(TRITON, serving.grpc_address, TOKEN)
    assert found["about"]["name"] == "edgesmith"
    assert {"news", "news:text"} <= set(found["names"])
    assert (found["dims"], found["kind"]) == ([4], 11)
    assert [text.count(":") for text in found["classes"]] == [2, 2]


def test_kserves_client_works_unmodified(serving: Serving) -> None:
    found = run_client(KSERVE, serving.grpc_address)
    assert found["found"] == [[43.0, 49.0, 55.0]] * 2
    assert found["label"][0] == "label"
