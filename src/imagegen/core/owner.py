"""Owners: who makes a request, and what they may do."""

from pydantic import Field

from imagegen.core.keys import Key, KeyLimits, Scope
from imagegen.core.value import Value


class Owner(Value):
    """The caller of a request. If there are no API keys, every caller is ANYONE."""

    #: The name of the API key; empty: no key.
    name: str = ""
    #: SHA-256 of the text of its API key, hexadecimal; empty: no key.
    key_sha256: str = Field(default="", repr=False)
    scopes: frozenset[Scope] = frozenset(Scope)
    #: Whether it may see the tasks of all owners.
    sees_all: bool = True
    #: Whether it may change the tasks of all owners.
    changes_all: bool = True
    #: The models that it may use; empty: all.
    models: tuple[str, ...] = ()
    #: The lowest priority number that its tasks may have; None: any.
    priority_floor: int | None = None
    limits: KeyLimits = KeyLimits()
    #: Whether it has no key but a signed URL, which stays valid for its time.
    signed: bool = False

    def may_see(self, owner: str) -> bool:
        """Whether this caller may see a task of `owner`. Any other task is not found."""
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
        key_sha256=key.sha256,
        scopes=frozenset(Scope) if admin else frozenset(key.scopes),
        sees_all=admin or Scope.READ in key.scopes,
        changes_all=admin,
        models=key.models,
        priority_floor=key.priority_floor,
        limits=key.limits,
    )
