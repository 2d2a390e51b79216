"""Every field with which a caller names a file: no value that passes leads out of the folder."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from imagegen.api.native.models import entries, pulls
from imagegen.api.native.models import routes as models
from imagegen.api.native.tasks import generation
from imagegen.api.native.tasks import routes as tasks
from imagegen.catalog.changes import WEIGHTS_FILE
from imagegen.catalog.fields import Mark, marks, sections
from imagegen.catalog.hub_cache import HubCache
from imagegen.loaders import FAMILIES

#: Words in the names of fields that name a file, a folder or a repository.
NAMING = ("path", "file", "repo", "weight_name", "folder", "source")

TEXTS = {Mark.TEXT, Mark.PATH, Mark.FILE, Mark.SOURCE, Mark.SOURCE_OR_PATH}


def bodies() -> list[type[BaseModel]]:
    """The bodies of all routes that take one."""
    routers = [generation.router, generation.upload_router, tasks.router, models.router, entries.router, pulls.router]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    kinds = [route.body_field.field_info.annotation for route in routes if route.body_field is not None]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def fields_of(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a section and of the sections in it."""
    for name, info in kind.model_fields.items():
        yield f"{kind.__name__}.{name}", info
        for inner in sections(info):
            yield from fields_of(inner)


KINDS = [*bodies(), *dict.fromkeys(family.spec for family in FAMILIES.values())]
ALL = dict(found for kind in KINDS for found in fields_of(kind))


def typed(info: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = info.annotation
    return TypeAdapter(Annotated[kind, "", *info.metadata])


FILES = [pytest.param(typed(info), id=name) for name, info in ALL.items() if Mark.FILE in marks(info)]
SOURCES = [
    pytest.param(typed(info), id=name)
    for name, info in ALL.items()
    if Mark.SOURCE in marks(info) and name.partition(".")[2] != "parts"
]

#: What paths out of a folder are made of.
HOSTILE = st.lists(
    st.sampled_from(
        ["..", ".", "/", "\\", "~", "sub", "a", "%2e%2e", "\0", "\n", "@", "dev", "zero", " ", "C:", "//", "é"]
    )
    | st.text(max_size=3),
    max_size=9,
).map("".join)
ENDS = st.sampled_from(["", ".safetensors", "/x.safetensors", ".gguf", "/x.gguf", "{precision}.safetensors"])


def test_all_fields_that_name_a_file_are_marked() -> None:
    words = [name for name in ALL if any(word in name.partition(".")[2] for word in NAMING)]
    assert {"LoraBody.path", "Text2ImageBody.lora_weights_path", "EntryLora.path"} <= {*words}
    assert [name for name in words if not marks(ALL[name]) & TEXTS] == []


@pytest.mark.parametrize("field", FILES)
@given(text=st.builds("{}{}".format, HOSTILE, ENDS))
def test_no_text_that_a_field_takes_leads_out_of_its_folder(field: TypeAdapter[Any], text: str) -> None:
    try:
        name = field.validate_python(text)
    except ValidationError:
        return
    assert os.path.normpath(f"/folder/{name}") == f"/folder/{name}"
    assert name.isprintable()
    assert "\\" not in name
    assert WEIGHTS_FILE.validate_python(name) == name


@pytest.mark.parametrize("field", SOURCES)
@given(text=st.builds("org/name@{}{}".format, HOSTILE, ENDS) | HOSTILE)
def test_no_source_leads_out_of_the_cache(field: TypeAdapter[Any], text: str) -> None:
    try:
        source = field.validate_python(text)
    except ValidationError:
        return
    repo, _, revision = source.partition("@")
    folder = HubCache(repo).folder
    for path in (folder, folder / "refs" / revision, folder / "snapshots" / revision):
        assert os.path.normpath(path) == str(path)
        assert path.is_relative_to(folder)


@pytest.mark.parametrize("field", FILES)
@pytest.mark.parametrize("text", ["sub/../../../outside/x", "../x", "/etc/x", "~/x", "a//x", "a\\..\\x", "a\0x"])
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_each_field_refuses_the_known_ways_out(field: TypeAdapter[Any], text: str, suffix: str) -> None:
    with pytest.raises(ValidationError):
        field.validate_python(text + suffix)
