"""Metrics and traces. Both tap the event bus; nothing waits for them."""
