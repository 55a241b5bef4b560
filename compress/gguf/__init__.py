"""Stages that make a GGUF file smaller: importance matrices, quantization, the choice of bits."""
