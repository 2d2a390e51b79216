"""Values that every package uses: tasks, events, errors, sizes. They need the standard library and pydantic only."""
