"""Open WebUI: its images router, unmodified, with its database and files.

It generates and edits with the engine `openai`, and generates with the engine `automatic1111`.
"""

import asyncio
import base64
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
# Its settings: a folder of its own, and the files of the package instead of a checkout.
os.environ |= {"DATA_DIR": str(OUT / "data"), "WEBUI_SECRET_KEY": "conformance", "FROM_INIT_PY": "true"}
(OUT / "data").mkdir()

from fastapi import FastAPI, HTTPException, Request  # noqa: E402 - Open WebUI reads its settings when it is imported
from open_webui.models.config import Config  # noqa: E402
from open_webui.models.files import Files  # noqa: E402
from open_webui.routers import files, images  # noqa: E402

app = FastAPI()
app.include_router(files.router, prefix="/api/v1/files")
app.include_router(images.router, prefix="/api/v1/images")
request = Request({"type": "http", "app": app, "headers": [], "method": "POST", "path": "/"})
user = SimpleNamespace(id="alice", email="alice@example.com", name="Alice", role="admin")

SETTINGS = {
    "image_generation.enable": True,
    "image_generation.engine": "openai",
    "image_generation.openai.api_base_url": f"{URL}/v1",
    "image_generation.openai.api_key": KEY,
    "image_generation.openai.api_version": "",
    "image_generation.openai.params": {},
    "image_generation.size": "128x128",
    "image_generation.steps": None,
    "images.edit.enable": True,
    "images.edit.engine": "openai",
    "images.edit.openai.api_base_url": f"{URL}/v1",
    "images.edit.openai.api_key": KEY,
    "images.edit.openai.api_version": "",
    "images.edit.size": "",
}

#: Without keys, the field for the authentication of Automatic1111 is left empty.
AUTOMATIC1111 = SETTINGS | {
    "image_generation.engine": "automatic1111",
    "image_generation.automatic1111.base_url": URL,
    "image_generation.automatic1111.api_auth": f"openwebui:{KEY}" if KEY else "",
    "image_generation.automatic1111.api_params": {"sampler_name": "Euler a", "cfg_scale": 1},
}


async def keep(name: str, made: list[dict]) -> list[bytes]:
    """The pictures that Open WebUI has stored."""
    stored = [Path((await Files.get_file_by_id(it["id"])).path).read_bytes() for it in made]
    for number, data in enumerate(stored):
        (OUT / f"{name}-{number}.png").write_bytes(data)
    return stored


async def check(model: str) -> None:
    await Config.upsert(SETTINGS | {"image_generation.model": model, "images.edit.model": model})
    form = images.CreateImageForm(prompt="a red circle on a blue background", n=2)
    circles = await keep(f"{model}-circle", await images.image_generations(request, form, user=user))
    assert len(circles) == 2
    url = f"data:image/png;base64,{base64.b64encode(circles[0]).decode()}"
    for name, image in (("edit", url), ("edit-list", [url])):
        form = images.EditImageForm(image=image, prompt="a yellow star on a blue background")
        await keep(f"{model}-{name}", await images.image_edits(request, form, user=user))


async def refused(form: images.CreateImageForm) -> None:
    try:
        await images.image_generations(request, form, user=user)
    except HTTPException as error:
        print("refused:", error.detail)
    else:
        raise AssertionError("not refused")


async def check_automatic1111() -> None:
    await Config.upsert(AUTOMATIC1111)
    where = images.ConnectionVerificationForm(engine="automatic1111", url=URL, key=f"openwebui:{KEY}" if KEY else None)
    assert await images.verify_connection(where, user=user)
    assert {"id": "tiny", "name": "tiny"} in await images.get_models(request, user=user)
    for steps, negative in ((None, None), (8, "dark")):
        form = images.CreateImageForm(
            model="tiny", prompt="a yellow star on a black background", n=2, steps=steps, negative_prompt=negative
        )
        stars = await keep(f"a1111-star-{steps}", await images.image_generations(request, form, user=user))
        assert len(stars) == 2
    assert await images.get_image_model(request) == "tiny"
    await refused(images.CreateImageForm(prompt="x", steps=0))
    if KEY:
        await Config.upsert({"image_generation.automatic1111.api_auth": "openwebui:wrong"})
        await refused(images.CreateImageForm(prompt="x"))


async def main() -> None:
    for model in ("gpt-image-1", "dall-e-2", "tiny"):
        await check(model)
    await Config.upsert({"image_generation.openai.params": {"background": "transparent"}})
    await refused(images.CreateImageForm(prompt="x"))
    await check_automatic1111()


asyncio.run(main())
print("open-webui", version("open-webui"), "works")
