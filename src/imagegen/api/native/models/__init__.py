"""Models: their entries in models.yaml, pulls of their weights, and what is loaded."""
