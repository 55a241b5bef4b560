"""Training: Hugging Face's Trainer underneath, made to resume exactly, stop early and fail clearly."""
