"""`Value`: the base of everything that is passed between rooms, stored, or sent over a pipe."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable, typed record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def evolve(self, **changes: Any) -> Self:
        """A copy with the given fields replaced. The caller vouches for their types: nothing is validated again."""
        return self.model_copy(update=changes)
