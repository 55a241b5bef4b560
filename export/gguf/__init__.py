"""From a Hugging Face checkpoint to a GGUF file for llama.cpp, and the proof that both are one model."""
