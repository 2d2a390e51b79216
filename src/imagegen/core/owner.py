"""Owners: on whose behalf a request is made."""

from imagegen.core.keys import Key, KeyLimits, Scope
from imagegen.core.value import Value


class Owner(Value):
    """The caller of a request. Without API keys everybody is ANYONE."""

    #: The name of the API key; empty: no key.
    name: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)
    #: Whether it may see the tasks of all owners.
    sees_all: bool = True
    #: Whether it may change the tasks of all owners.
    changes_all: bool = True
    #: The models that it may use; empty: all.
    models: tuple[str, ...] = ()
    #: Its tasks have no lower priority number; None: any.
    priority_floor: int | None = None
    limits: KeyLimits = KeyLimits()

    def may_see(self, owner: str) -> bool:
        """Whether a task of `owner` exists for this caller."""
        return self.sees_all or owner == self.name

    def may_change(self, owner: str) -> bool:
        """Whether this caller may cancel or delete a task of `owner`."""
        return self.changes_all or owner == self.name


ANYONE = Owner()


def owner_of(key: Key) -> Owner:
    """The caller that has this key."""
    admin = Scope.ADMIN in key.scopes
    return Owner(
        name=key.name,
        scopes=frozenset(Scope) if admin else frozenset(key.scopes),
        sees_all=admin or Scope.READ in key.scopes,
        changes_all=admin,
        models=key.models,
        priority_floor=key.priority_floor,
        limits=key.limits,
    )
