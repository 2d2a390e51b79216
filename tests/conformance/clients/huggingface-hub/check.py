"""huggingface_hub's InferenceClient and AsyncInferenceClient against /hf/{model}."""

import asyncio
import os
from pathlib import Path

from huggingface_hub import AsyncInferenceClient, InferenceClient, InferenceTimeoutError
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

url, key, out = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"] or None, Path(os.environ["OUT"])
client = InferenceClient(base_url=f"{url}/hf/tiny", api_key=key)

# Generate.
image = client.text_to_image("a red circle on a blue background", seed=7, num_inference_steps=8, width=128, height=96)
assert (image.format, image.size) == ("PNG", (128, 96))
image.save(out / "text_to_image.png")
again = client.text_to_image("a red circle on a blue background", seed=7, num_inference_steps=8, width=128, height=96)
assert image.tobytes() == again.tobytes()

# Edit: with parameters as JSON, without as bytes; and with a field of this service's own.
file = out / "text_to_image.png"
more = {"seed": 7, "strength": 0.9}
edited = client.image_to_image(file, prompt="a yellow star on a blue background", num_inference_steps=8, **more)
edited.save(out / "image_to_image.png")
assert edited.size == client.image_to_image(file.read_bytes()).size
small = client.image_to_image(file.read_bytes(), prompt="a star", target_size={"width": 64, "height": 64})
assert small.size == (64, 64)


async def with_asyncio() -> Image.Image:
    async with AsyncInferenceClient(base_url=f"{url}/hf/anyone/tiny", api_key=key) as another:
        return await another.text_to_image("a green square", num_inference_steps=2)


assert asyncio.run(with_asyncio()).size == (128, 128)

# Errors: the message of the service is in the exception.
for wrong, status, said in (
    ({"scheduler": "ddim"}, 422, "scheduler"),
    ({"negative_prompt": "dark"}, 422, "negative_prompt"),
    ({"width": 8, "height": 8}, 422, "width"),
):
    try:
        client.text_to_image("x", **wrong)
    except HfHubHTTPError as error:
        assert error.response.status_code == status, error
        assert said in str(error), error
    else:
        raise AssertionError(f"{wrong} was accepted")
if key:
    try:
        InferenceClient(base_url=f"{url}/hf/tiny", api_key="ig_wrong").text_to_image("x")
    except HfHubHTTPError as error:
        assert error.response.status_code == 401
    else:
        raise AssertionError("a wrong key was accepted")

# A caller that gives up: its task is cancelled.
try:
    InferenceClient(base_url=f"{url}/hf/tiny", api_key=key, timeout=2).text_to_image(
        "x", num_inference_steps=200, width=1024, height=1024
    )
except InferenceTimeoutError:
    pass
else:
    raise AssertionError("it took less than two seconds")
