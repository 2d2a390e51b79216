"""Values that every package uses: tasks, events, errors, sizes. Standard library and pydantic only."""
