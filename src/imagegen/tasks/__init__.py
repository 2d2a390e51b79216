"""Tasks: accepted, ordered, run, ended."""
