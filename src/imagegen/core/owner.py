"""Owners: on whose behalf a request is made."""

from imagegen.core.value import Value


class Owner(Value):
    """The caller of a request. Without API keys everybody is ANYONE."""

    #: The name of the API key; empty: no key.
    name: str = ""
    #: Whether it may see and change the tasks of all owners.
    sees_all: bool = True

    def may_see(self, owner: str) -> bool:
        """Whether a task of `owner` exists for this caller."""
        return self.sees_all or owner == self.name


ANYONE = Owner()
