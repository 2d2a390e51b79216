"""Tasks: the routes that accept them, and those that show, cancel, replay and delete them."""
