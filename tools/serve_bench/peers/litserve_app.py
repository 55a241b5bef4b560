"""ONNX Runtime behind LitServe, as its documentation shows it: LITSERVE_MODEL, LITSERVE_PORT, LITSERVE_BATCH."""

import os

import litserve as ls
import numpy as np
import onnxruntime as ort

BATCH = int(os.environ.get("LITSERVE_BATCH", "1"))


class Api(ls.LitAPI):
    """Arrays as nested lists, by name."""

    def setup(self, device):  # noqa: ARG002
        """Open the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["LITSERVE_MODEL"], options, providers=["CPUExecutionProvider"])
        self.types = {one.name: np.int64 if "int64" in one.type else np.float32 for one in self.session.get_inputs()}
        self.names = [one.name for one in self.session.get_outputs()]

    def decode_request(self, request):
        """JSON to arrays."""
        return {name: np.asarray(values, self.types[name]) for name, values in request["inputs"].items()}

    def batch(self, inputs):
        """Join the rows of several requests."""
        return {name: np.concatenate([one[name] for one in inputs]) for name in self.types}

    def predict(self, x):
        """Run."""
        return dict(zip(self.names, self.session.run(None, x), strict=True))

    def unbatch(self, output):
        """Cut the rows apart again."""
        rows = len(output[self.names[0]])
        return [{name: values[row : row + 1] for name, values in output.items()} for row in range(rows)]

    def encode_response(self, output):
        """Arrays to JSON."""
        return {"outputs": {name: values.tolist() for name, values in output.items()}}


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=0.002 if BATCH > 1 else 0.0)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(os.environ["LITSERVE_PORT"]), generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip
