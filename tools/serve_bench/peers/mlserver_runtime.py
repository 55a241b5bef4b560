"""ONNX Runtime as a custom runtime of MLServer."""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """Tensors of the Open Inference Protocol."""

    async def load(self) -> bool:
        """Open the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )  # fmt: skip
        self.names = [one.name for one in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run."""
        feeds = {one.name: np.ascontiguousarray(NumpyCodec.decode_input(one)) for one in payload.inputs}
        found = zip(self.names, self.session.run(None, feeds), strict=True)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name, values) for name, values in found]
        )
