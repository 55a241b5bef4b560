"""What `tools/measure_serve.py` measures: servers in processes of their own, and a client that costs little."""
