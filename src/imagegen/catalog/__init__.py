"""models.yaml and the frozen, typed Catalog that it becomes."""
