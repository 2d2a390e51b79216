"""Real clients, each in an environment of its own, against a live service: `python -m tests.conformance`."""
