"""Graph passes over onnx_ir, one a file, composed by hand with `run_passes`."""
