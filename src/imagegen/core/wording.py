"""Messages about wrong values: pydantic's errors in plain words, texts of the wrong form, and suggestions for names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

#: Where the log is, for messages that refer to it.
THE_LOG = "the log (stderr of the service; `journalctl` under systemd)"

#: What pydantic writes before the message of a ValueError or an AssertionError.
_PREFIX = re.compile(r"^(Value error|Assertion failed), ")


def explained(details: ErrorDetails) -> str:
    """The message of one of pydantic's errors, without its prefixes and without a regular expression."""
    if details["type"] == "string_pattern_mismatch":
        return "The text does not have the allowed form"
    return _PREFIX.sub("", details["msg"])


def nearest(word: object, known: Iterable[object]) -> str:
    """`; did you mean 'x'?` with the known name that is closest to a word; empty if none is close."""
    close = get_close_matches(str(word), map(str, known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class Form:
    """Annotation of a text: it must match `pattern` from beginning to end, or `says` is the error message.

    pydantic's own `pattern` would show the regular expression to the user. The JSON schema contains it in both cases.
    """

    pattern: str
    says: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise PydanticCustomError("form", "{says}", {"says": self.says})
        return text
