"""Accepts tasks, decides their order, runs them, and ends them."""
