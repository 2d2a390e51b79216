"""Delivers webhooks: the events of tasks, sent to receivers over HTTP."""
