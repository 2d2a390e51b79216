"""Pulls weights from the hub: which files, in which process, and when."""
