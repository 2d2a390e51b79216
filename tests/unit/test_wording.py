"""Messages about a value that is wrong: sentences, without a regular expression and without pydantic's prefixes."""

from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from imagegen.catalog.catalog import ModelId
from imagegen.catalog.fields import HubSource, SafetensorsFile
from imagegen.cli.common import settings_with
from imagegen.core.wording import Form, explained, nearest
from imagegen.settings import Settings


def message(kind: Any, value: object) -> str:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(kind).validate_python(value)
    (details,) = raised.value.errors()
    return explained(details)


class Checked(BaseModel):
    word: Annotated[str, Form("[a-z]+", "must be small letters")]
    plain: str = Field("a", pattern="^a$")


@pytest.mark.parametrize("text", ["A", "ab1", "ab\n", " ab", ""])
def test_a_form_is_about_the_whole_text_and_says_its_sentence(text: str) -> None:
    assert message(Checked, {"word": text}) == "must be small letters"


def test_a_form_is_in_the_json_schema() -> None:
    assert Checked.model_json_schema()["properties"]["word"]["pattern"] == "^[a-z]+$"
    assert Checked(word="ab").word == "ab"


def test_a_pattern_of_pydantic_is_not_shown() -> None:
    assert message(Checked, {"word": "a", "plain": "b"}) == "The text does not have the allowed form"


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (ModelId, "a b", "must be a model id: letters, digits"),
        (HubSource, "https://huggingface.co/a/b", "must be a repository on the hub: org/name"),
        (HubSource, "a--b/c", "the hub does not allow this name"),
        (SafetensorsFile, "../x.safetensors", "must be a file below its folder or repository"),
        (SafetensorsFile, "x.bin", "must end with .safetensors"),
        (Settings, {"device": "gpu"}, "must be auto, cpu, cuda, cuda:N, or the UUID of a card"),
        (Settings, {"store": "https://bucket"}, "must be s3://bucket or s3://bucket/prefix"),
        (Settings, {"store_urls": "presigned"}, "IMAGEGEN_STORE_URLS=presigned needs IMAGEGEN_STORE"),
    ],
)
def test_each_field_with_a_form_says_what_it_takes(kind: Any, value: object, says: str) -> None:
    assert message(kind, value).startswith(says)


def test_a_command_says_it_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        settings_with(store_urls="presigned")
    assert capsys.readouterr().err == "IMAGEGEN_STORE_URLS=presigned needs IMAGEGEN_STORE=s3://bucket/prefix\n"


def test_the_nearest_name_is_offered_if_there_is_one() -> None:
    assert nearest("flux.1-schnel", ["tiny", "flux.1-schnell"]) == "; did you mean 'flux.1-schnell'?"
    assert nearest("zzz", ["tiny", "flux.1-schnell"]) == ""


def test_a_misspelt_variable_is_known_by_its_nearest_setting() -> None:
    names = ["IMAGEGEN_PROT", "IMAGEGEN_MAX_QUEUES", "imagegen_port", "IMAGEGEN_HOST", "IMAGEGEN_XYZQ", "PATH"]
    assert Settings.unknown_variables(dict.fromkeys(names, "1")) == {
        "IMAGEGEN_PROT": "; did you mean 'IMAGEGEN_PORT'?",
        "IMAGEGEN_MAX_QUEUES": "; did you mean 'IMAGEGEN_MAX_QUEUE'?",
        "IMAGEGEN_XYZQ": "",
    }
