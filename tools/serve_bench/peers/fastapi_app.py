"""ONNX Runtime behind FastAPI, written plainly: what a good afternoon gives. FASTAPI_MODEL names the model."""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["FASTAPI_MODEL"], options, providers=["CPUExecutionProvider"])
TYPES = {"INT64": np.int64, "FP32": np.float32}
INPUT = session.get_inputs()[0]
app = FastAPI()


class Tensor(BaseModel):
    """A tensor as JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[int]


class InferRequest(BaseModel):
    """What comes."""

    inputs: list[Tensor]


@app.get("/v2/health/ready")
def ready():
    """The model is loaded before the server listens."""
    return {"ready": True}


@app.post("/v2/models/m/infer")
def infer(request: InferRequest):
    """JSON in, JSON out."""
    feeds = {one.name: np.array(one.data, TYPES[one.datatype]).reshape(one.shape) for one in request.inputs}
    found = session.run(None, feeds)
    outputs = zip(session.get_outputs(), found, strict=True)
    return {"outputs": [{"name": one.name, "shape": y.shape, "data": y.ravel().tolist()} for one, y in outputs]}


@app.post("/raw")
async def raw(request: Request, shape: str):
    """The bytes of one tensor in, those of one out."""
    body = await request.body()
    dtype = np.int64 if "int64" in INPUT.type else np.float32
    x = np.frombuffer(body, dtype).reshape([int(one) for one in shape.split(",")])
    (y,) = session.run(None, {INPUT.name: x})
    return Response(y.tobytes(), media_type="application/octet-stream")
