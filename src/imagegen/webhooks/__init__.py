"""Telling receivers over HTTP what became of tasks."""
