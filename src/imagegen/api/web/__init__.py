"""The page at /: its files, and the routes that serve them. It calls the public API and nothing else."""
