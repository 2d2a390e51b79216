"""replicate (Python) with REPLICATE_BASE_URL: run, predictions, files, stream, cancel, errors."""

import asyncio
import io
import os
from pathlib import Path

os.environ["REPLICATE_BASE_URL"] = os.environ["IMAGEGEN_URL"]
if os.environ["IMAGEGEN_KEY"]:
    os.environ["REPLICATE_API_TOKEN"] = os.environ["IMAGEGEN_KEY"]

import httpx
import replicate
from replicate.exceptions import ReplicateError

out, asked = (
    Path(os.environ["OUT"]),
    {"prompt": "a red circle on a blue background", "num_inference_steps": 8, "seed": 7},
)

# Generate: by the model, by a version, and with asyncio. The URLs need no key.
for number, ref in enumerate(("imagegen/tiny", "imagegen/tiny:tiny")):
    (url,) = replicate.run(ref, input=asked)
    (out / f"run-{number}.png").write_bytes(httpx.get(str(url)).raise_for_status().content)
assert len(asyncio.run(replicate.async_run("imagegen/tiny", input=asked | {"num_outputs": 2}))) == 2

# Edit: a file, which the client uploads or sends as a data URL; and the output of a prediction.
picture = (out / "run-0.png").read_bytes()
edit = {"prompt": "a yellow star on a blue background", "prompt_strength": 0.9, "num_inference_steps": 8, "seed": 7}
for strategy in (None, "base64"):
    file = io.BytesIO(picture)
    file.name = "picture.png"
    output = replicate.run("imagegen/tiny", input=edit | {"image": file}, file_encoding_strategy=strategy)
    (out / f"edited-{strategy}.png").write_bytes(httpx.get(str(output[0])).content)
replicate.run("imagegen/tiny", input=edit | {"image": str(output[0])})

# A prediction, its progress, its list, and its cancellation.
made = replicate.predictions.create(version="tiny", input=asked)
assert made.status in ("starting", "processing")
made.wait()
assert made.status == "succeeded"
assert made.progress is not None
assert made.progress.percentage == 1
assert replicate.predictions.list().results[0].id == made.id
slow = replicate.models.predictions.create(
    "imagegen/tiny", input={"prompt": "x", "num_inference_steps": 200, "width": 1024, "height": 1024}
)
slow.cancel()
slow.wait()
assert slow.status == "canceled"

# Stream.
events = list(replicate.stream("imagegen/tiny", input=asked))
assert [str(event.event.value) for event in events][-2:] == ["output", "done"]
assert httpx.get(events[-2].data).status_code == 200

# What it tells about a model.
model = replicate.models.get("imagegen/tiny")
assert model.latest_version is not None
assert model.latest_version.id == "tiny"

# Errors.
for wrong in ({"scheduler": "DDIM"}, {"image": "data:image/png;base64,bm8="}, {"num_outputs": 0}):
    try:
        replicate.run("imagegen/tiny", input=asked | wrong)
    except ReplicateError as error:
        assert error.status == 422, error
        assert error.detail
    else:
        raise AssertionError(f"{wrong} was accepted")
