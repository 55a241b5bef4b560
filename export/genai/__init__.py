"""A language model in its second form: a folder for onnxruntime-genai, made by its own builder."""
