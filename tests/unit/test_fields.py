"""The annotations of a new family's fields are enough to confine, describe and reload them."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError
from scripts.reference import tables

from imagegen.catalog.catalog import Catalog, GlobalSettings, ModelSpec, Section
from imagegen.catalog.changes import Roots, with_model
from imagegen.catalog.difference import difference
from imagegen.catalog.fields import HubSource, Request, Text, WeightsFile, WeightsPath, marks, texts
from imagegen.catalog.loading import Families
from imagegen.catalog.schema import json_schema
from imagegen.catalog.yaml import read
from imagegen.core.errors import PathNotAllowed
from imagegen.loaders import SPECS


class Style(Section):
    sheet: WeightsFile


class NewSpec(ModelSpec):
    """A new family."""

    type: Literal["new"]
    pipeline_class: Literal["NewPipeline"] = "NewPipeline"
    vae_file: WeightsFile | None = None
    lexicon: WeightsPath | None = None
    sharpness: Annotated[int, Request] = Field(default=1, ge=0, le=9, description="How sharp.")
    styles: tuple[Style, ...] = ()


FAMILIES: Families = {**SPECS, "new": NewSpec}
HEAD = "models:\n  a:\n    name: A\n    type: new\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"vae_file": "/etc/shadow"},
        {"vae_file": "x/../../y"},
        {"lexicon": "/etc/shadow"},
        {"lexicon": "../x"},
        {"styles": [{"sheet": "a"}, {"sheet": "../a"}]},
    ],
)
def test_a_path_of_a_new_family_is_refused_outside_the_roots(tmp_path: Path, fields: dict[str, object]) -> None:
    roots = Roots(tmp_path, (tmp_path,))
    with pytest.raises(PathNotAllowed):
        with_model(read(HEAD), "b", {"name": "B", "type": "new", **fields}, FAMILIES, roots)
    inside = {"vae_file": "a/b.safetensors", "lexicon": "c", "styles": [{"sheet": "d"}]}
    new = with_model(read(HEAD), "b", {"name": "B", "type": "new", **inside}, FAMILIES, roots)
    assert "lexicon: c" in new.text


def test_a_field_of_a_new_family_is_shown_to_editors_and_readers() -> None:
    shown = json_schema(FAMILIES)["$defs"]["NewSpec"]["properties"]
    assert {"vae_file", "lexicon", "sharpness", "styles"} <= shown.keys()
    assert "| `sharpness` | a whole number" in tables(FAMILIES)["models"]


@pytest.mark.parametrize(
    ("changed", "reloads"),
    [({"vae_file": "b.safetensors"}, True), ({"lexicon": "b"}, True), ({"sharpness": 2}, False), ({"steps": 2}, False)],
)
def test_a_change_reloads_the_model_unless_only_requests_read_the_field(
    changed: dict[str, object], reloads: bool
) -> None:
    def catalog(**fields: object) -> Catalog:
        entry = NewSpec.model_validate({"name": "A", "type": "new", **fields})
        return Catalog(settings=GlobalSettings(), models={"a": entry})

    change = difference(catalog(), catalog(**changed))
    assert change.changed == ("a",)
    assert change.outdated == (("a",) if reloads else ())


def test_a_text_without_a_mark_is_refused_as_a_field() -> None:
    with pytest.raises(TypeError, match=r"Careless\.vae_file is a bare str"):

        class Careless(ModelSpec):
            vae_file: str | None = None


@pytest.mark.parametrize("kind", dict.fromkeys([GlobalSettings, *SPECS.values()]))
def test_every_text_field_of_every_family_has_a_mark(kind: type[Section]) -> None:
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, str):
            assert marks(info), name


_FILE: TypeAdapter[str] = TypeAdapter(WeightsFile)
_SOURCE: TypeAdapter[str] = TypeAdapter(HubSource)
_PARTS = st.sampled_from(["a", "..", ".", "", "~", "b.c", "\\", "@", "x y", "ü", "\0", "\n", "C:", "main"])


@given(st.lists(_PARTS, min_size=1, max_size=5).map("/".join) | st.text(max_size=20))
def test_no_file_leads_out_of_its_folder(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    try:
        file = _FILE.validate_python(value)
    except ValidationError:
        return
    folder = Path("/folder")
    assert (folder / file).resolve().is_relative_to(folder)
    assert (folder / file) != folder


@given(st.tuples(_PARTS, _PARTS, st.lists(_PARTS, max_size=4).map("/".join)))
def test_no_name_on_the_hub_leads_out_of_its_cache(parts: tuple[str, str, str]) -> None:
    owner, name, revision = parts
    try:
        source = _SOURCE.validate_python(f"{owner}/{name}@{revision}")
    except ValidationError:
        return
    folder = Path("/cache/refs")
    assert (folder / source.partition("@")[2]).resolve().is_relative_to(folder)


def test_texts_are_found_by_every_spelling() -> None:
    assert [(key, value) for key, _, value in texts(SPECS["gguf"], {"filename": "a.gguf", "steps": 3})] == [
        ("filename", "a.gguf")
    ]


class _Described(ModelSpec):
    note: Annotated[Text, Request] = ""


def test_a_text_field_is_not_checked_as_a_path(tmp_path: Path) -> None:
    Roots(tmp_path, ()).check(_Described, {"note": "/etc/shadow", "name": "../x"})
