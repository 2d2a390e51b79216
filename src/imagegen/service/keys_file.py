"""The file of IMAGEGEN_KEYS_FILE: API keys that an operator manages outside of imagegen."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, SecretStr, ValidationError, model_validator

from imagegen.catalog.yaml import MAX_BYTES, YamlProblem, read
from imagegen.core.errors import KeysFileInvalid
from imagegen.core.keys import Key, KeyLimits, KeyName, Scope, digest_of, prefix_of
from imagegen.core.value import Value
from imagegen.core.webhooks import WebhookSecret
from imagegen.core.wording import explained


class _Entry(Value):
    name: KeyName
    #: The text of the key. A shorter one could be guessed.
    key: Annotated[SecretStr, Field(min_length=32, max_length=200)] | None = None
    #: SHA-256 of the text, instead of the text.
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", repr=False)
    scopes: tuple[Scope, ...] = Field((Scope.GENERATE,), min_length=1, max_length=3)
    models: tuple[str, ...] = Field((), max_length=1000)
    priority_floor: int | None = Field(None, ge=-1000, le=1000)
    limits: KeyLimits = KeyLimits()
    #: Signs the webhooks of its tasks; None: the secrets of the service do.
    webhook_secret: WebhookSecret | None = None
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give either key or sha256")
        return self

    def as_key(self) -> Key:
        text = self.key.get_secret_value() if self.key else ""
        prefix = prefix_of(text)[:8] if self.key else ""
        signs = self.webhook_secret.get_secret_value() if self.webhook_secret else None
        fields = self.model_dump(exclude={"key", "sha256", "webhook_secret"})
        return Key(prefix=prefix, sha256=self.sha256 or digest_of(text), webhook_secret=signs, **fields)


class _File(Value):
    keys: tuple[_Entry, ...] = Field(max_length=1000)

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        if len({entry.name for entry in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same name")
        return self


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a YAML or JSON file. Raises KeysFileInvalid, whose message has no secret."""
    try:
        if not path.is_file():  # reading a pipe could wait for ever
            raise KeysFileInvalid(f"{path} is not a file.")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
        found = _File.model_validate(read(text).data)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeysFileInvalid(f"{path} cannot be read: {reason}.") from None
    except YamlProblem as error:
        raise KeysFileInvalid(f"{path}:{error.position.line}: the file is neither YAML nor JSON.") from None
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc']))}: {explained(e)}"
            for e in error.errors(include_url=False, include_input=False)
        )
        raise KeysFileInvalid("\n".join(lines)) from None
    return tuple(entry.as_key() for entry in found.keys)
