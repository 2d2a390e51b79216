"""Multipart bodies: from their parts to the fields of a request and its files."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from imagegen.api.openai.fields import invalid

T = TypeVar("T", bound=BaseModel)

#: Parts of one body. The most pictures that OpenAI takes is 16.
MAX_FILES, MAX_FIELDS = 17, 100

#: `loras[][path]`: SDKs write a list of objects this way.
_NESTED = re.compile(r"(\w{1,40})\[\]\[(\w{1,40})\]", re.ASCII)

#: Values that SDKs write as text.
_WORDS: Mapping[str, object] = {"true": True, "false": False, "null": None}

Files = Mapping[str, list[bytes]]


async def read_form(request: Request, kind: type[T], files_named: Collection[str]) -> tuple[T, Files]:
    """The fields of a multipart body, and the bytes of its files by name: `image` has those of `image[]`, too.

    Raises RequestValidationError, and HTTPException for a body that is no multipart.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        detail = f"The body must be multipart/form-data. Its Content-Type is {media_type[:100] or 'missing'}."
        raise HTTPException(415, detail, {"Accept": "multipart/form-data"})
    files: dict[str, list[bytes]] = {}
    texts: list[tuple[str, str]] = []
    parser = MultiPartParser(request.headers, request.stream(), max_files=MAX_FILES, max_fields=MAX_FIELDS)
    parser.spool_max_size = 0  # all in memory: the limit of the body bounds it, and the disk may be full
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    try:
        for name, value in form.multi_items():
            file = name.removesuffix("[]")
            if isinstance(value, UploadFile) != (file in files_named):
                raise invalid(file[:100], "must be a file" if file in files_named else "no file of this name is read")
            if isinstance(value, UploadFile):
                files.setdefault(file, []).append(await value.read())
            else:
                texts.append((name, value))
    finally:
        await form.close()
    try:
        return kind.model_validate(values_of(texts, kind)), files
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**it, "loc": ("body", *it["loc"])} for it in found]) from None


def values_of(texts: Iterable[tuple[str, str]], kind: type[BaseModel]) -> dict[str, Any]:
    """The values of a form, as JSON would have them. Text that is not of a field's type stays text.

    Raises RequestValidationError for a name that stands there twice and is no list.
    """
    values: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    for name, text in texts:
        if (nested := _NESTED.fullmatch(name)) is not None:
            _add_nested(lists.setdefault(nested[1], []), nested[2], _value(text, textual=nested[2] != "scale"))
        elif name.endswith("[]"):
            lists.setdefault(name.removesuffix("[]"), []).append(text)
        elif name in values:
            raise invalid(name[:100], "is given twice")
        else:
            field = kind.model_fields.get(name)
            values[name] = _value(text, textual=field is None or _is_text(field.annotation))
    if both := values.keys() & lists.keys():
        raise invalid(min(both)[:100], "is given twice")
    return values | lists


def _add_nested(objects: list[Any], key: str, value: object) -> None:
    """Add a value to the last object; a key that it has already begins the next one."""
    if not objects or not isinstance(objects[-1], dict) or key in objects[-1]:
        objects.append({})
    objects[-1][key] = value


def _is_text(annotation: Any) -> bool:
    return annotation is str or any(map(_is_text, get_args(annotation)))


def _value(text: str, *, textual: bool) -> object:
    if textual:
        return text
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text) if len(text) <= 10_000 else text
    except (ValueError, RecursionError):
        return text
