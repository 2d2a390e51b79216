"""Values that every room speaks of: tasks, events, errors, sizes. Standard library and pydantic only."""
