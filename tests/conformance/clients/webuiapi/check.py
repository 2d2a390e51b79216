"""webuiapi against /sdapi/v1: its whole payload, options, progress, interrupt, errors; basic authentication."""

import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import webuiapi
from PIL import Image, ImageDraw

address, key, out = urlsplit(os.environ["IMAGEGEN_URL"]), os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
where = {"host": address.hostname, "port": address.port}
api = webuiapi.WebUIApi(**where, username="anyone", password=key) if key else webuiapi.WebUIApi(**where)

# What it asks when it begins, and the model.
assert api.get_scripts() == {"txt2img": [], "img2img": []}
assert "tiny" in api.util_get_model_names()
api.util_set_model("tiny")
assert api.util_get_current_model() == "tiny"
assert [sampler["name"] for sampler in api.get_samplers()] == ["Automatic"]
assert [upscaler["name"] for upscaler in api.get_upscalers()] == ["None"]
for read in (
    "loras",
    "sd_vae",
    "embeddings",
    "memory",
    "cmd_flags",
    "hypernetworks",
    "prompt_styles",
    "face_restorers",
):
    getattr(api, f"get_{read}")()
api.refresh_checkpoints()
api.util_wait_for_ready()

# Generate. The sampler that it names by itself belongs to the model here, and the answer says so.
made = api.txt2img(prompt="a red circle on a blue background", seed=7, steps=8, cfg_scale=0, width=128, height=128)
assert made.image.size == (128, 128)
assert (made.info["seed"], made.info["steps"], made.info["sampler_name"]) == (7, 8, "Euler")
assert "Euler a" in made.info["warnings"][0]
made.image.save(out / "txt2img.png")
two = api.txt2img(prompt="a red circle", sampler_name="Euler", n_iter=2, steps=2, cfg_scale=0, width=128, height=128)
assert len(two.images) == 2
assert two.info["warnings"] == []
assert api.png_info(made.image).info.startswith("a red circle on a blue background\nSteps: 8")

# Edit: a picture, and a mask whose white part is repainted.
edited = api.img2img(
    images=[made.image],
    prompt="a yellow star on a blue background",
    steps=8,
    cfg_scale=0,
    seed=7,
    width=128,
    height=128,
)
edited.image.save(out / "img2img.png")
mask = Image.new("L", (128, 128))
ImageDraw.Draw(mask).rectangle((0, 0, 63, 127), fill=255)
painted = api.img2img(
    images=[made.image], mask_image=mask, prompt="a green square", steps=8, cfg_scale=0, seed=7, width=128, height=128
)
painted.image.save(out / "inpainted.png")
right = (64, 0, 128, 128)
assert painted.image.convert("RGB").crop(right).tobytes() == made.image.convert("RGB").crop(right).tobytes()

# Errors.
for wrong in ({"enable_hr": True}, {"sampler_name": "none"}, {"steps": 0}):
    try:
        api.txt2img(prompt="x", **wrong)
    except RuntimeError as error:
        assert error.args[0] == 422, error
        assert next(iter(wrong)) in error.args[1], error
    else:
        raise AssertionError(f"{wrong} was accepted")

# Progress and interrupt.
failed: list[int] = []


def draw() -> None:
    try:
        api.txt2img(prompt="a red circle", steps=200, cfg_scale=0, width=512, height=512)
    except RuntimeError as error:
        failed.append(error.args[0])


drawing = threading.Thread(target=draw)
drawing.start()
while not 0 < api.get_progress()["progress"] < 1:
    time.sleep(0.05)
assert api.get_progress()["state"]["job_count"] == 1
api.interrupt()
drawing.join()
assert failed == [409]
