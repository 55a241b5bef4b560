"""Two artifacts in turns in one run, with the noise that the run itself shows."""
