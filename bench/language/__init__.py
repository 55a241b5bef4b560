"""How well a language model predicts text, and how well it answers: perplexity, divergence, task metrics."""
