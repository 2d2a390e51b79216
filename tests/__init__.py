"""Tests say what the product promises."""
