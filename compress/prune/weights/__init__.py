"""One-shot pruning of single weights, with one block of the model in memory at a time."""
