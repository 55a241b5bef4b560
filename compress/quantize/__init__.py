"""Our own INT8 quantization of ONNX graphs; `compress.quantize.stage.quantize_onnx` is the way in."""
