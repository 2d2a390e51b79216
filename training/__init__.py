"""Owns the making of the embedded model; nothing of it is part of the service."""
