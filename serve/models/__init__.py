"""Models that are served: each an artifact, its engine, and the thread that runs it."""
