"""Statistics of measurements: pure functions on arrays and counts, each with its source."""
