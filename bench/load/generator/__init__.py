"""The side of a load test that runs inside Locust; nothing outside of it imports this."""
