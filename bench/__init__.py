"""Benchmarks. Each prints a Markdown table for docs/benchmarks.md; `make bench` runs them all."""
