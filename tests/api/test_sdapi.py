"""The API of Automatic1111's web UI: what its clients send, and what they read."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from PIL import Image, PngImagePlugin

from imagegen.api.sdapi import LISTS, PREFIX
from imagegen.core.keys import Scope
from tests.api.conftest import Client, Start
from tests.api.test_generation import picture
from tests.api.test_keys import key
from tests.api.test_waiting import SLOW, post_and_go

#: What webuiapi 0.9 sends with every txt2img.
WEBUIAPI: dict[str, Any] = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}

#: What SillyTavern adds: the address and the password of the server among them.
SILLYTAVERN = {
    "url": "http://127.0.0.1:7860",
    "auth": "user:ig_secret",
    "scheduler": "Automatic",
    "hr_additional_modules": [],
    "clip_skip": 1,
    "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": None},
}

MODELS: dict[str, dict[str, Any]] = {"first": {}, "second": {}, "third": {}}


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start(MODELS) as running:
        yield running


async def post(client: Client, path: str, **body: Any) -> Response:
    return await client.post(f"{PREFIX}/{path}", json=body)


async def made(client: Client, to: str = "txt2img", **body: Any) -> tuple[list[Image.Image], dict[str, Any]]:
    answer = await post(client, to, **body)
    assert answer.status_code == 200, answer.text
    images: list[Image.Image] = [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer.json()["images"]]
    return images, json.loads(answer.json()["info"])


# -- pictures ----------------------------------------------------------------------------------------------------------


async def test_txt2img_answers_with_pictures_and_their_parameters(client: Client) -> None:
    asked: dict[str, Any] = {"prompt": "a fox, red", "steps": 3, "cfg_scale": 7, "width": 96, "height": 64, "seed": 5}
    images, info = await made(client, **asked, batch_size=2, n_iter=2)
    assert [(image.format, image.size) for image in images] == [("PNG", (96, 64))] * 4
    assert info["all_seeds"] == [5, 6, 7, 8]
    assert (info["seed"], info["width"], info["height"], info["steps"], info["cfg_scale"]) == (5, 96, 64, 3, 7)
    assert info["infotexts"][1].startswith("a fox, red\nSteps: 3, Sampler: Automatic, Schedule type: Automatic, CFG ")
    assert "Seed: 6, Size: 96x64, Model: first," in info["infotexts"][1]
    assert info["warnings"] == []
    assert (await client.task(info["task_id"]))["prompt"] == "a fox, red"


async def test_what_clients_send_by_default_makes_a_picture(client: Client) -> None:
    for more in ({}, SILLYTAVERN):
        answer = await post(client, "txt2img", **WEBUIAPI | more, prompt="a fox", steps=2, width=64, height=64)
        assert answer.status_code == 200, answer.text
        assert "secret" not in answer.text
        assert len(answer.json()["images"]) == 1


async def test_what_a_model_cannot_honour_is_told_in_the_info(client: Client) -> None:
    _, info = await made(client, prompt="a fox", negative_prompt="dark", sampler_name="DPM++ 2M Karras", steps=1)
    assert [warning.partition(":")[0] for warning in info["warnings"]] == [
        "negative_prompt",
        "The sampler belongs to the model",
    ]
    assert info["negative_prompt"] == ""
    assert info["sampler_name"] == "Automatic"
    assert "DPM++ 2M Karras" in info["warnings"][1]


#: Fields, and what the refusal of each says.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"enable_hr": True}, "enable_hr"),
    ({"styles": ["x"]}, "styles"),
    ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts"),
    ({"sampler_name": "Eulre"}, "did you mean 'Euler'"),
    ({"scheduler": "karass"}, "did you mean 'karras'"),
    ({"negativ_prompt": "x"}, "did you mean 'negative_prompt'"),
    ({"steps": 0}, "steps"),
    ({"batch_size": 65}, "batch_size"),
    ({"width": 64}, "width and height"),
    ({"override_settings": {"sd_vae": "other.safetensors"}}, "sd_vae"),
    ({"prompt": "a \x00"}, "control characters"),
]


async def test_what_would_change_nothing_is_refused_by_name(client: Client) -> None:
    for wrong, said in REFUSED:
        answer = await post(client, "txt2img", **{"prompt": "a fox"} | wrong)
        assert answer.status_code == 422
        assert list(answer.json()) == ["error", "detail", "body", "errors"]
        assert answer.json()["error"] == "invalid_request"
        assert said in answer.json()["detail"]


async def test_img2img_starts_from_a_picture(client: Client) -> None:
    images, info = await made(client, "img2img", prompt="a fox", init_images=[picture((32, 16))], steps=2)
    assert [image.size for image in images] == [(96, 48)]  # the shape of the picture, in the area of the model
    assert info["denoising_strength"] == 0.75
    assert "Denoising strength: 0.75" in info["infotexts"][0]
    answer = await post(client, "img2img", prompt="a fox", init_images=["bm8="])
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_image")
    refused = await post(client, "img2img", prompt="a", init_images=[picture()], mask=picture(), mask_blur=4)
    assert refused.json()["error"] == "unsupported_capability"  # the fake models cannot inpaint


async def test_a_failed_task_is_an_error(start: Start) -> None:
    async with start({"fake": {"fault": "error"}}) as client:
        answer = await post(client, "txt2img", prompt="a fox")
        assert (answer.status_code, answer.json()["error"]) == (500, "generation_failed")
        missing = await client.get(f"{PREFIX}/nothing")
        assert (missing.status_code, missing.json()["error"]) == (404, "not_found")


async def test_a_lora_of_the_prompt_is_looked_up_by_its_name(start: Start, tmp_path: Path) -> None:
    (tmp_path / "loras" / "styles").mkdir(parents=True)
    (tmp_path / "loras" / "styles" / "ink.safetensors").touch()
    async with start(MODELS, loras_dir=tmp_path / "loras") as client:
        listed = (await client.get(f"{PREFIX}/loras")).json()
        assert [(lora["name"], lora["path"]) for lora in listed] == [("styles/ink", "styles/ink.safetensors")]
        for prompt, code in (
            ("a fox <lora:ink:0.5>", "unsupported_capability"),  # found, but the fake models take none
            ("a fox <lora:inc:0.5>", "lora_not_found"),
            ("a fox <lora:ink:much>", "invalid_request"),
        ):
            answer = await post(client, "txt2img", prompt=prompt)
            assert answer.json()["error"] == code, answer.text


# -- the state of a call -----------------------------------------------------------------------------------------------


async def running(client: Client, **body: Any) -> asyncio.Task[Response]:
    """A call that is being drawn."""
    call = asyncio.create_task(post(client, "txt2img", **{"prompt": "x", "steps": 2} | body))
    while not (await client.get("/tasks", params={"status": "processing"})).json()["filtered"]:
        await asyncio.sleep(0.01)
    return call


async def test_progress_and_interrupt_are_about_the_callers_own_calls(start: Start) -> None:
    async with start({"fake": {"step_seconds": 0.2}}) as client:
        idle = (await client.get(f"{PREFIX}/progress")).json()
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
        call = await running(client, steps=100, force_task_id="mine")
        while not (now := (await client.get(f"{PREFIX}/progress")).json())["progress"]:
            await asyncio.sleep(0.01)
        assert 0 < now["progress"] < 1
        assert (now["state"]["job_count"], now["state"]["sampling_steps"]) == (1, 100)
        task_id = now["state"]["job"]
        for wanted in ("mine", task_id):
            found = (await client.get(f"{PREFIX}/progress", params={"id_task": wanted})).json()
            assert found["state"]["job"] == task_id
        assert (await client.get(f"{PREFIX}/progress", params={"id_task": "other"})).status_code == 404

        assert (await post(client, "interrupt")).json() == {}
        assert (await call).json()["error"] == "task_cancelled"
        assert (await client.until(task_id))["status"] == "cancelled"
        assert (await post(client, "interrupt")).json() == {}  # nothing runs


async def test_previews_are_shown_where_they_are_switched_on(start: Start) -> None:
    async with start({"fake": {"step_seconds": 0.05}}) as client:
        await post(client, "options", live_previews_enable=True)
        call = await running(client, steps=20)
        while not (now := (await client.get(f"{PREFIX}/progress")).json())["current_image"]:
            await asyncio.sleep(0.01)
        with Image.open(io.BytesIO(base64.b64decode(now["current_image"]))) as image:
            assert image.format == "JPEG"
        without = await client.get(f"{PREFIX}/progress", params={"skip_current_image": True})
        assert without.json()["current_image"] is None
        assert (await call).status_code == 200


async def test_a_caller_that_leaves_cancels_its_task(start: Start) -> None:
    async with start(SLOW, drain_timeout_s=0) as client:
        await asyncio.wait_for(post_and_go(client, {"prompt": "x"}, f"{PREFIX}/txt2img"), 30)
        (task,) = (await client.get("/tasks")).json()["tasks"]
        assert (await client.until(task["task_id"]))["status"] == "cancelled"


# -- options and lists -------------------------------------------------------------------------------------------------


async def test_the_model_is_an_option_of_each_caller(client: Client) -> None:
    options = (await client.get(f"{PREFIX}/options")).json()
    assert options["sd_model_checkpoint"] == "first"
    posted = await post(client, "options", **options | {"sd_model_checkpoint": "second"})  # as Open WebUI does
    assert (posted.status_code, posted.json()) == (200, None)
    assert (await client.get(f"{PREFIX}/options")).json()["sd_model_checkpoint"] == "second"
    assert (await made(client, prompt="x", steps=1))[1]["sd_model_name"] == "second"
    once: dict[str, Any] = {"override_settings": {"sd_model_checkpoint": "first"}}
    assert (await made(client, prompt="x", steps=1, **once))[1]["sd_model_name"] == "first"
    assert (await made(client, prompt="x", steps=1))[1]["sd_model_name"] == "second"
    await made(client, prompt="x", steps=1, **once, override_settings_restore_afterwards=False)
    assert (await client.get(f"{PREFIX}/options")).json()["sd_model_checkpoint"] == "first"
    wrong = await post(client, "options", sd_model_checkpoint="secnod")
    assert (wrong.status_code, wrong.json()["error"]) == (404, "model_not_found")
    assert "second" in wrong.json()["detail"]


async def test_each_key_has_its_own_model_and_calls(client: Client) -> None:
    alice, bob = await key(client, "alice"), await key(client, "bob", models=("second",))
    await client.post(f"{PREFIX}/options", json={"sd_model_checkpoint": "third"}, headers=alice)
    chosen = [
        (await client.get(f"{PREFIX}/options", headers=who)).json()["sd_model_checkpoint"] for who in (alice, bob)
    ]
    assert chosen == ["third", "second"]
    listed = (await client.get(f"{PREFIX}/sd-models", headers=bob)).json()
    assert [model["title"] for model in listed] == ["second"]
    forbidden = await client.post(f"{PREFIX}/options", json={"sd_model_checkpoint": "first"}, headers=bob)
    assert forbidden.status_code == 403


async def test_a_key_is_taken_as_the_password_of_basic(client: Client) -> None:
    text = (await key(client, "alice"))["Authorization"].removeprefix("Bearer ")
    for user in ("", "anyone:", "a:"):
        basic = base64.b64encode(f"{user}{text}".encode()).decode()
        answer = await client.get(f"{PREFIX}/options", headers={"Authorization": f"Basic {basic}"})
        assert answer.status_code == 200, user
    for wrong in ("", "Basic", "Basic a", "Basic !!!!", "Basic " + base64.b64encode(b"a:ig_b").decode()):
        answer = await client.get(f"{PREFIX}/options", headers={"Authorization": wrong})
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")


async def test_reading_needs_no_more_than_the_scope_read(client: Client) -> None:
    reader = await key(client, "reader", Scope.READ)
    for path in ("options", "sd-models", "loras", "progress", "memory", *LISTS):
        assert (await client.get(f"{PREFIX}/{path}", headers=reader)).status_code == 200, path
    for path in ("txt2img", "img2img", "interrupt", "options"):
        answer = await client.post(f"{PREFIX}/{path}", json={}, headers=reader)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden"), path


async def test_lists_have_the_forms_that_clients_read(client: Client) -> None:
    async def names(path: str, field: str = "name") -> list[str]:
        return [item[field] for item in (await client.get(f"{PREFIX}/{path}")).json()]

    assert await names("samplers") == ["Automatic"]
    assert await names("schedulers") == ["automatic"]
    assert await names("upscalers") == ["None"]
    assert await names("latent-upscale-modes") == []
    assert await names("sd-models", "model_name") == list(MODELS)
    assert (await client.get(f"{PREFIX}/scripts")).json() == {"txt2img": [], "img2img": []}
    assert (await client.get(f"{PREFIX}/memory")).json()["ram"]["total"] > 0
    for path in ("refresh-checkpoints", "refresh-loras"):
        assert (await client.post(f"{PREFIX}/{path}")).json() is None


# -- pictures of old ---------------------------------------------------------------------------------------------------


async def test_png_info_reads_the_parameters_of_our_pictures_and_of_the_web_uis(client: Client) -> None:
    answer = await post(client, "txt2img", prompt="a fox", seed=9, steps=2)
    ours = (await post(client, "png-info", image=answer.json()["images"][0])).json()
    assert ours["info"] == json.loads(answer.json()["info"])["infotexts"][0]
    assert (ours["parameters"]["Prompt"], ours["parameters"]["Seed"]) == ("a fox", "9")

    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat\nSteps: 20")
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "PNG", pnginfo=text)
    theirs = await post(client, "png-info", image=base64.b64encode(file.getvalue()).decode())
    assert theirs.json()["info"] == "a cat\nSteps: 20"
    for kind in ("PNG", "BMP"):
        bare = (await post(client, "png-info", image=picture((8, 8), kind))).json()
        assert bare == {"info": "", "items": {}, "parameters": {}}
