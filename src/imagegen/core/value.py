"""`Value`: the base class of all values that are passed between packages, stored, or sent over a pipe."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable, typed record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def evolve(self, **changes: Any) -> Self:
        """A copy with the given fields replaced. The new values are not validated."""
        return self.model_copy(update=changes)
