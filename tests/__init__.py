"""Tests of imagegen."""
