"""litellm: generate, edit, errors."""

import base64
import io
import os
import urllib.request
from importlib.metadata import version
from pathlib import Path

import litellm

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
WHERE = {"api_base": f"{URL}/v1", "api_key": KEY or "none"}
CIRCLE = "a red circle on a blue background"


def keep(name: str, text: str) -> bytes:
    data = base64.b64decode(text)
    (OUT / name).write_bytes(data)
    return data


for model in ("openai/gpt-image-1", "openai/dall-e-3", "openai/tiny"):
    made = litellm.image_generation(prompt=CIRCLE, model=model, size="128x128", **WHERE)
    circle = keep(f"{model.rpartition('/')[2]}.png", made.data[0].b64_json)
    assert bool(made.data[0].url) == (model != "openai/gpt-image-1")
    if made.data[0].url:
        with urllib.request.urlopen(made.data[0].url) as answer:
            assert answer.read() == circle
assert made.usage.total_tokens == made.usage.input_tokens > 0, made.usage

two = litellm.image_generation(
    prompt="a yellow star",
    model="openai/gpt-image-1",
    n=2,
    quality="low",
    size="128x128",
    extra_body={"seed": 7},
    **WHERE,
)
assert len(two.data) == 2

edited = litellm.image_edit(
    image=io.BytesIO(circle), prompt="a yellow star on a blue background", model="openai/gpt-image-1", **WHERE
)
keep("edited.png", edited.data[0].b64_json)

try:
    litellm.image_generation(prompt="x", model="openai/gpt-image-1", background="transparent", **WHERE)
except litellm.BadRequestError as error:
    assert "background" in str(error), error
else:
    raise AssertionError("not refused")
if KEY:
    try:
        litellm.image_generation(prompt="x", model="openai/gpt-image-1", api_base=f"{URL}/v1", api_key="ig_wrong")
    except litellm.AuthenticationError:
        pass
    else:
        raise AssertionError("not refused")
print("litellm", version("litellm"), "works")
