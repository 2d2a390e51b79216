"""What Open WebUI sends with the engine automatic1111 (backend/open_webui/routers/images.py), with its HTTP library."""

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import aiohttp

url, key, out = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])

# AUTOMATIC1111_API_AUTH is `user:password`. Without one, it sends an empty header.
auth = f"Basic {base64.b64encode(f'openwebui:{key}'.encode()).decode()}" if key else ""
headers = {"authorization": auth}


async def get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(f"{url}/sdapi/v1/{path}", headers=headers) as answer:
        answer.raise_for_status()
        return await answer.json()


async def check() -> None:
    async with aiohttp.ClientSession() as session:
        # "Verify connection", the list of models, and the model that an administrator chooses.
        options = await get(session, "options")
        models = [{"id": model["title"], "name": model["model_name"]} for model in await get(session, "sd-models")]
        assert {"id": "tiny", "name": "tiny"} in models
        options["sd_model_checkpoint"] = "tiny"
        async with session.post(f"{url}/sdapi/v1/options", json=options, headers=headers) as answer:
            answer.raise_for_status()
        assert (await get(session, "options"))["sd_model_checkpoint"] == "tiny"

        # Generate: steps and negative_prompt are sent where they are set.
        for number, more in enumerate(({}, {"steps": 8, "negative_prompt": "dark"}, {"cfg_scale": 0})):
            data = {"prompt": "a yellow star on a black background", "batch_size": 1, "width": 128, "height": 128}
            async with session.post(f"{url}/sdapi/v1/txt2img", json=data | more, headers=headers) as answer:
                made = await answer.json(content_type=None)
            assert "info" in made
            for image in made["images"]:
                (out / f"txt2img-{number}.png").write_bytes(base64.b64decode(image))

        # It shows what is wrong as text.
        async with session.post(f"{url}/sdapi/v1/txt2img", json={"prompt": "x", "steps": 0}, headers=headers) as answer:
            assert (answer.status, "images" in await answer.json(content_type=None)) == (422, False)
        if key:
            async with session.get(f"{url}/sdapi/v1/options", headers={"authorization": ""}) as answer:
                assert answer.status == 401


asyncio.run(check())
