"""models.yaml, and the frozen, typed Catalog that is read from it."""
