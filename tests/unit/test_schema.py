"""The schema and the reference page agree with the fields of models.yaml."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts.reference import made

from imagegen.builtin import default_config
from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.fields import field_names
from imagegen.catalog.schema import description, json_schema
from imagegen.catalog.yaml import read
from imagegen.loaders import SPECS

SCHEMA = json_schema(SPECS)


@pytest.mark.parametrize("path", made(), ids=lambda path: path.name)
def test_generated_files_are_current(path: Path) -> None:
    assert path.read_text() == made()[path], "run `python scripts/reference.py`"


def test_the_shipped_file_names_its_schema_in_the_first_line() -> None:
    first = default_config().read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    assert json.loads((Path(__file__).parents[2] / "config" / named[1]).read_text()) == SCHEMA


@pytest.mark.parametrize("kind", dict.fromkeys([GlobalSettings, *SPECS.values()]))
def test_editors_know_every_spelling_and_refuse_all_else(kind: type[Any]) -> None:
    section = SCHEMA["$defs"][kind.__name__]
    assert set(field_names(kind)) | set(kind.model_fields) == set(section["properties"])
    assert section["additionalProperties"] is False


@pytest.mark.parametrize("kind", dict.fromkeys([GlobalSettings, *SPECS.values()]))
def test_every_field_is_explained(kind: type[Any]) -> None:
    assert [name for name in kind.model_fields if not description(kind, name)] == []


def test_the_shipped_file_keeps_to_the_schema() -> None:
    data = read(default_config().read_text()).data
    assert set(data) <= set(SCHEMA["properties"])
    assert set(data["global"]) <= set(SCHEMA["$defs"]["GlobalSettings"]["properties"])
    for entry in data["models"].values():
        section = SCHEMA["$defs"][SPECS[entry["type"]].__name__]
        assert set(entry) <= set(section["properties"])
        assert set(section["required"]) <= set(entry)


@pytest.mark.parametrize("path", ["config/models.schema.json", "docs/models.md", "docs/configuration.md"])
def test_the_fake_family_is_not_documented(path: str) -> None:
    assert not re.search("fake", (Path(__file__).parents[2] / path).read_text(), re.IGNORECASE)
