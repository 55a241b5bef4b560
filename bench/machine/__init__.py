"""The machine: what it is, how busy it was, what it can do at the most."""
