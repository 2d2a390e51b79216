"""OpenAI's API without a service: forms, and the headers of errors."""

import pytest
from fastapi.exceptions import RequestValidationError

from imagegen.api.openai.errors import render
from imagegen.api.openai.fields import EditFields
from imagegen.api.openai.forms import values_of
from imagegen.api.problems import problem


def test_a_form_says_what_json_would() -> None:
    texts = [
        *(("prompt", "true"), ("negative_prompt", "12"), ("n", "3"), ("stream", "true"), ("seed", "7")),
        *(("size", "64x64"), ("strength", "0.5"), ("quality", "low"), ("other", "1"), ("tags[]", "a"), ("tags[]", "b")),
        *(("loras[][path]", "1"), ("loras[][scale]", "0.5"), ("loras[][path]", "b.safetensors")),
        ("image_loras", '[{"path": "c.safetensors"}]'),
    ]
    assert values_of(texts, EditFields) == {
        **{"prompt": "true", "negative_prompt": "12", "n": 3, "stream": True, "seed": 7},
        **{"size": "64x64", "strength": 0.5, "quality": "low", "other": "1", "tags": ["a", "b"]},
        "loras": [{"path": "1", "scale": 0.5}, {"path": "b.safetensors"}],
        "image_loras": [{"path": "c.safetensors"}],
    }


@pytest.mark.parametrize("names", [("n", "n"), ("n", "n[]"), ("loras[][path]", "loras")])
def test_a_name_of_a_form_stands_there_once(names: tuple[str, str]) -> None:
    with pytest.raises(RequestValidationError) as raised:
        values_of([(name, "1") for name in names], EditFields)
    assert raised.value.errors()[0]["msg"] == "is given twice"


@pytest.mark.parametrize(
    ("code", "after", "sent"),
    [
        ("queue_full", 30, {"retry-after": "30"}),
        ("queue_full", 1800, {"retry-after": "120"}),
        ("limit_reached", 60, {"retry-after": "60"}),
        ("limit_reached", 30_000, {"retry-after": "30000", "x-should-retry": "false"}),
    ],
)
def test_a_retry_is_asked_for_within_what_the_sdks_obey(code: str, after: int, sent: dict[str, str]) -> None:
    answer = render(problem(code, "no"), {"Retry-After": str(after)})
    assert {
        name: answer.headers.get(name) for name in ("retry-after", "x-should-retry") if name in answer.headers
    } == sent
