"""Decides which models are in memory, and holds what is known of each model."""
