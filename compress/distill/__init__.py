"""Distillation: a smaller student learns to do as its teacher does."""
