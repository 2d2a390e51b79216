"""together: generate with its own fields, from a picture, errors. The address is in TOGETHER_BASE_URL."""

import base64
import os
import urllib.request
from importlib.metadata import version
from pathlib import Path

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
os.environ["TOGETHER_BASE_URL"], os.environ["TOGETHER_API_KEY"] = URL, KEY or "none"

import together  # noqa: E402 - it reads these variables

client = together.Together()
MODEL = "black-forest-labs/FLUX.1-schnell-Free"  # not the repository of a model, so it is an alias


def keep(name: str, text: str) -> bytes:
    data = base64.b64decode(text)
    (OUT / name).write_bytes(data)
    return data


made = client.images.generate(
    model=MODEL,
    prompt="a red circle on a blue background",
    width=128,
    height=96,
    steps=8,
    seed=7,
    n=2,
    response_format="base64",
)
assert [it.index for it in made.data] == [0, 1]
assert (made.object, made.model) == ("list", "tiny"), made
circle = keep("circle.png", made.data[0].b64_json)
assert circle[16:24] == bytes.fromhex("0000008000000060")

linked = client.images.generate(model=MODEL, prompt="a yellow star", response_format="url", output_format="jpeg")
with urllib.request.urlopen(linked.data[0].url) as answer:
    (OUT / "star.jpg").write_bytes(answer.read())

url = f"data:image/png;base64,{base64.b64encode(circle).decode()}"
for name, fields in (("from-url", {"image_url": url}), ("from-reference", {"reference_images": [url]})):
    edited = client.images.generate(
        model=MODEL, prompt="a yellow star on a blue background", response_format="base64", **fields
    )
    keep(f"{name}.png", edited.data[0].b64_json)

for fields in (
    {"image_url": "https://example.com/a.png"},
    {"reference_images": [url, url]},
    {"negative_prompt": "blue"},
    {"image_loras": [{"path": "https://example.com/lora", "scale": 1.0}]},
):
    try:
        client.images.generate(model=MODEL, prompt="x", **fields)
    except together.BadRequestError as error:
        assert next(iter(fields)) in str(error), error
    else:
        raise AssertionError(f"not refused: {fields}")
if KEY:
    try:
        together.Together(api_key="ig_wrong").images.generate(model=MODEL, prompt="x")
    except together.AuthenticationError:
        pass
    else:
        raise AssertionError("not refused")
print("together", version("together"), "works")
