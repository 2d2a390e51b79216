"""Request bodies: the spellings of the original API are read, and invalid values are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imagegen.api.native.tasks.generation import Image2ImageBody, Text2ImageBody
from imagegen.core.task import Lora


def text2image(body: str | dict[str, Any]) -> Text2ImageBody:
    """Parse like the framework: first JSON, then the model."""
    return Text2ImageBody.model_validate(json.loads(body) if isinstance(body, str) else body)


def refused(body: str | dict[str, Any]) -> list[Any]:
    """The places of the problems."""
    with pytest.raises(ValidationError) as raised:
        text2image(body)
    return [error["loc"] for error in raised.value.errors()]


# -- spellings ---------------------------------------------------------------------------------------------------------


def test_the_body_of_the_original_api_is_read() -> None:
    brief = text2image(
        '{"prompt": "A beautiful landscape", "model_name": "flux_dev", "batch_size": 1,'
        ' "aspect_ratio": "16:9", "priority": 0}'
    )
    assert (brief.model, brief.batch_size, brief.aspect_ratio, brief.priority) == ("flux_dev", 1, "16:9", 0)


@pytest.mark.parametrize(
    ("older", "newer"), [("model_name", "model"), ("batchSize", "batch_size"), ("aspectRatio", "aspect_ratio")]
)
def test_older_and_newer_spellings_mean_the_same_but_not_both_at_once(older: str, newer: str) -> None:
    value = {"model": "tiny", "batch_size": 2, "aspect_ratio": "4:3"}[newer]
    assert text2image({"prompt": "a", older: value}) == text2image({"prompt": "a", newer: value})
    assert refused({"prompt": "a", newer: value, older: value}) == [(older,)]


def test_an_input_picture_has_two_spellings() -> None:
    for spelling in ("image", "base64_image"):
        assert Image2ImageBody.model_validate({"prompt": "a", spelling: "x"}).image == "x"


def test_omitted_fields_take_the_defaults_of_the_original_api() -> None:
    body = text2image({"prompt": "a"})
    assert (body.model, body.batch_size, body.aspect_ratio, body.priority, body.seed) == (None, 1, "1:1", 0, None)
    assert Image2ImageBody.model_validate({"prompt": "a", "image": "x"}).strength == 0.8
    assert text2image({"prompt": "a", "lora_weights_path": "x.safetensors"}).lora_scale == 0.7


# -- bounds ------------------------------------------------------------------------------------------------------------

TOO_MUCH = [
    ("prompt", ""),
    ("prompt", "x" * 8193),
    ("prompt", "x" * 10_000_000),
    ("negative_prompt", "x" * 8193),
    ("batch_size", 0),
    ("batch_size", 65),
    ("batch_size", 10**9),
    ("batch_size", 10**400),
    ("width", 15),
    ("height", 8193),
    ("steps", 0),
    ("steps", 201),
    ("guidance_scale", -0.1),
    ("guidance_scale", 50.1),
    ("seed", -2),
    ("seed", 2**64),
    ("seed", 10**400),
    ("seed", "18446744073709551616"),
    ("seed", "-2"),
    ("seed", "7.0"),
    ("seed", "0x7"),
    ("seed", " 7"),
    ("seed", "\u0667"),
    ("seed", ""),
    ("seed", 7.0),
    ("seed", -1.0),
    ("seed", True),
    ("priority", 1001),
    ("priority", -1001),
    ("model", ""),
    ("model", "../etc/passwd"),
    ("model", "x" * 65),
    ("aspect_ratio", "2:1"),
    ("aspect_ratio", "input"),
    ("aspect_ratio", ""),
    ("lora_weights_path", ""),
    ("lora_weights_path", "x" * 501),
    ("lora_scale", 5),
    ("lora_scale", -5),
]


@pytest.mark.parametrize(("field", "value"), TOO_MUCH, ids=lambda value: str(value)[:20])
def test_every_field_has_bounds(field: str, value: object) -> None:
    body = {"prompt": "a", "width": 64, "height": 64, field: value}
    assert (field,) in refused(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 64), ("seed", 2**64 - 1), ("seed", 0), ("priority", -1000), ("steps", 200), ("guidance_scale", 50)],
)
def test_bounds_belong_to_what_is_allowed(field: str, value: object) -> None:
    assert getattr(text2image({"prompt": "a", field: value}), field) == value


@pytest.mark.parametrize(
    ("given", "seed"),
    [("7", 7), ("18446744073709551615", 2**64 - 1), ("0", 0), (-1, None), ("-1", None), (None, None)],
)
def test_a_seed_may_be_text_and_minus_one_is_random(given: object, seed: int | None) -> None:
    assert text2image({"prompt": "a", "seed": given}).seed == seed


def test_the_documentation_says_that_a_seed_may_be_text() -> None:
    kinds = Image2ImageBody.model_json_schema()["properties"]["seed"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["integer", "string", "null"]
    assert (kinds[0]["minimum"], kinds[0]["maximum"]) == (-1, 2**64 - 1)


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, 1e-17, 1e-300, float("nan"), float("inf"), "0.5", True])
def test_a_strength_replaces_something_and_at_most_everything(strength: object) -> None:
    # 1 - 1e-17 is 1: with such a strength there is no step left to run.
    with pytest.raises(ValidationError):
        Image2ImageBody.model_validate({"prompt": "a", "image": "x", "strength": strength})


@pytest.mark.parametrize("side", ["width", "height"])
def test_one_side_alone_is_no_size(side: str) -> None:
    assert refused({"prompt": "a", side: 64}) == [()]


# -- oddities of JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "\\ud800"}',
        '{"prompt": "a\\u0000b"}',
        '{"prompt": "a\\u001b[2J"}',
        '{"prompt": "a", "seed": 1e400}',
        '{"prompt": "a", "seed": NaN}',
        '{"prompt": "a", "seed": 1.0}',
        '{"prompt": "a", "seed": true}',
        '{"prompt": "a", "batch_size": true}',
        '{"prompt": "a", "batch_size": "2"}',
        '{"prompt": "a", "batch_size": [2]}',
        '{"prompt": "a", "guidance_scale": Infinity}',
        '{"prompt": "a", "guidance_scale": "3"}',
        '{"prompt": "a", "guidance_scale": true}',
        '{"prompt": "a", "model": "tiny\\n"}',
        '{"prompt": "a", "model": "\\ud800"}',
        '{"prompt": "a", "lora_weights_path": "\\ud800"}',
        '{"prompt": ["a"]}',
        '{"prompt": {"a": "b"}}',
        '{"prompt": null}',
        '{"prompt": "a", "unknown": 1}',
        '{"prompt": "a", "__proto__": {}}',
        '{"prompt": "a", "image": "x"}',
        "{}",
        "[]",
        "null",
        "7",
        '"prompt"',
    ],
)
def test_an_inexact_request_is_refused(body: str) -> None:
    assert refused(body)


@pytest.mark.parametrize("prompt", ["zwei\nZeilen\tmit Tabulator\r\n", "红色圆圈 🟥", "‏עברית", "x" * 8192])
def test_any_script_is_welcome(prompt: str) -> None:
    assert text2image({"prompt": prompt}).prompt == prompt


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(Text2ImageBody.model_fields)), ANYTHING)
def test_whatever_a_field_holds_it_is_taken_or_refused(field: str, value: Any) -> None:
    try:
        body = text2image({"prompt": "a", field: value})
    except ValidationError:
        return
    assert getattr(body, field) == value
    body.model_dump_json()


@pytest.mark.parametrize("repo", [None, "org/name@main"])
def test_a_lora_is_read_as_tasks_show_it(repo: str | None) -> None:
    lora = Lora(path="ink.safetensors", scale=0.5, repo=repo)
    shown = lora.model_dump(mode="json")
    older = {("weight_name" if name == "path" else name): it for name, it in shown.items()}
    for written in (shown, older):
        assert Text2ImageBody.model_validate({"prompt": "x", "loras": [written]}).all_loras() == (lora,)


@pytest.mark.parametrize("lora", [{}, {"repo": "org/name"}, {"path": "a.safetensors", "weight_name": "b.safetensors"}])
def test_a_lora_has_one_file(lora: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Text2ImageBody.model_validate({"prompt": "x", "loras": [lora]})
