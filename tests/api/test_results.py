"""Formats, receipts, replays, keys, search."""

import asyncio
import base64
import io
import json
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagegen.catalog.catalog import Catalog
from imagegen.core.task import ImageFormat
from imagegen.storage.encoding import read_receipt
from tests.api.conftest import Client, Start

# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ImageFormat)
async def test_a_picture_has_the_requested_format(client: Client, kind: ImageFormat) -> None:
    task = await client.until(await client.submit(format=kind, seed=7))
    assert task["format"] == kind
    (image,) = task["images"]
    answer = await client.get(image["url"])
    assert answer.headers["content-type"] == f"image/{kind}"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == (kind.upper(), (image["width"], image["height"]))
    receipt = read_receipt(answer.content)
    assert receipt is not None
    assert receipt["pixels_sha256"] == image["pixels_sha256"]


async def test_a_picture_without_metadata_has_no_receipt(client: Client) -> None:
    task = await client.until(await client.submit(metadata=False))
    assert read_receipt((await client.get(task["images"][0]["url"])).content) is None
    assert task["receipt"]["model"] == "fake"


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "gif"},
        {"format": "png", "quality": 90},
        {"format": "jpeg", "quality": 0},
        {"format": "jpeg", "quality": 101},
        {"format": "jpeg", "quality": True},
        {"metadata": 1},
    ],
)
async def test_an_unknown_format_is_refused(client: Client, fields: dict[str, Any]) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", **fields})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_picture_that_its_format_cannot_store_fails_only_its_task(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("encoder error -2")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", refuse)
        task = await client.until(await client.submit(format="webp"))
    assert (task["status"], task["error_code"]) == ("failed", "encoding_failed")
    assert (await client.until(await client.submit(format="webp")))["status"] == "completed"


# -- receipts ----------------------------------------------------------------------------------------------------------


async def test_a_receipt_lists_what_the_picture_depends_on(client: Client) -> None:
    task = await client.until(await client.submit("a cat", seed=5, batch_size=2))
    receipt = task["receipt"]
    assert receipt["request"] | {"prompt": "a cat", "seed": 5, "batch_size": 2, "steps": 4} == receipt["request"]
    made_by = receipt["provenance"]
    assert (made_by["loader"], made_by["dtype"], made_by["call_pictures"]) == ("fake", "uint8", 1)
    assert "imagegen" in made_by["versions"]
    assert "receipt" not in (await client.get("/tasks")).json()["tasks"][0]


async def test_before_a_picture_is_made_there_is_no_receipt(start: Start) -> None:
    async with start(models={"slow": {"step_seconds": 0.5}}, drain_timeout_s=0) as client:
        task_id = await client.submit()
        assert "receipt" not in await client.task(task_id)
        answer = await client.post(f"/task/{task_id}/replay")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_receipt")


# -- replay ------------------------------------------------------------------------------------------------------------


async def replayed(client: Client, task_id: str) -> dict[str, Any]:
    answer = await client.post(f"/task/{task_id}/replay")
    assert answer.status_code == 202, answer.text
    return await client.until(answer.json()["task_id"])


async def test_a_replay_makes_the_same_pixels_and_reports_it(client: Client) -> None:
    first = await client.until(await client.submit("a cat", batch_size=3, format="webp", steps=2))
    again = await replayed(client, first["task_id"])
    assert again["task_id"] != first["task_id"]
    assert again["replay"] == {"of": first["task_id"], "identical": True, "differences": []}
    assert [it["pixels_sha256"] for it in again["images"]] == [it["pixels_sha256"] for it in first["images"]]
    assert again["format"] == "webp"


async def test_a_replay_outlives_what_it_repeats(client: Client) -> None:
    first = await client.until(await client.submit())
    again = await replayed(client, first["task_id"])
    await client.delete(f"/task/{first['task_id']}")
    assert (await client.task(again["task_id"]))["replay"]["identical"] is True


async def test_a_replay_by_other_weights_lists_the_differences(start: Start) -> None:
    async with start() as client:
        first = await client.until(await client.submit())
    async with start(models={"fake": {"memory_mb": 1}}) as client:
        replay = (await replayed(client, first["task_id"]))["replay"]
        assert replay["differences"] == ["weights: fake:1, was fake:0"]


async def test_a_replay_of_a_removed_model_is_refused(start: Start) -> None:
    async with start() as client:
        first = await client.until(await client.submit())
    async with start(models={"other": {}}) as client:
        answer = await client.post(f"/task/{first['task_id']}/replay")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def png(colour: str) -> str:
    Image.new("RGB", (64, 64), colour).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def test_the_embedded_model_repeats_an_edit_from_its_kept_pictures(start: Start, shipped: Catalog) -> None:
    async with start(catalog=shipped, config=Path("config/models.yaml").resolve()) as client:
        body = {"prompt": "a red circle", "image": png("blue"), "mask": png("white"), "steps": 2, "seed": 3}
        answer = await client.post("/image2image", json=body, headers={"Prefer": "wait=120"})
        first = answer.json()
        assert first["receipt"]["init_image_sha256"]
        assert first["receipt"]["provenance"]["weights"][0].startswith("sample-sha256:")
        again = await replayed(client, first["task_id"])
        assert again["replay"] == {"of": first["task_id"], "identical": True, "differences": []}


async def test_a_replay_whose_pixels_differ_is_not_identical(start: Start, tmp_path: Path) -> None:
    entry = {"name": "T", "type": "flux", "local_path": "builtin:tiny", "base_size": 64, "steps": 2}
    (config := tmp_path / "own.yaml").write_text(json.dumps({"models": {"tiny": entry | {"torch_dtype": "float32"}}}))
    async with start(config=config) as client:
        first = await client.until(await client.submit("a red circle", seed=7))
    config.write_text(json.dumps({"models": {"tiny": entry | {"torch_dtype": "bfloat16"}}}))
    async with start(config=config) as client:
        replay = (await replayed(client, first["task_id"]))["replay"]
    assert replay == {"of": first["task_id"], "identical": False, "differences": ["dtype: bfloat16, was float32"]}


# -- Idempotency-Key ---------------------------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "order 66"}


async def test_the_same_key_and_body_are_the_same_task(client: Client) -> None:
    first = await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
    assert "idempotency-replayed" not in first.headers
    await client.until(first.json()["task_id"])
    again = await client.post("/text2image", json={"prompt": "x", "batchSize": 1}, headers=KEY)  # in other words
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["task_id"] == first.json()["task_id"]
    assert again.json()["status"] == "completed"
    assert (await client.get("/tasks")).json()["total"] == 1


async def test_another_body_under_the_same_key_is_refused(client: Client) -> None:
    await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
    for path, body in (("/text2image", {"prompt": "y"}), ("/image2image", {"prompt": "x", "image": png("red")})):
        answer = await client.post(path, json=body, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert (await client.get("/tasks")).json()["total"] == 1


async def test_fifty_at_once_are_one_task(client: Client) -> None:
    posts = (client.post("/text2image", json={"prompt": "x"}, headers=KEY) for _ in range(50))
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert (await client.get("/tasks")).json()["total"] == 1


async def test_a_refused_request_uses_no_key(client: Client) -> None:
    refused = await client.post("/text2image", json={"prompt": "x", "model": "none"}, headers=KEY)
    assert refused.status_code == 404
    assert (await client.post("/text2image", json={"prompt": "y"}, headers=KEY)).status_code == 202


async def test_a_full_queue_does_not_refuse_a_task_that_is_in_it(start: Start) -> None:
    async with start(models={"slow": {"step_seconds": 0.5}}, max_queue=1, drain_timeout_s=0) as client:
        running = await client.submit()
        await client.until(running, "processing")
        first = await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
        assert (await client.post("/text2image", json={"prompt": "y"})).json()["code"] == "queue_full"
        again = await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
        assert again.json()["task_id"] == first.json()["task_id"]


async def test_a_key_outlives_a_restart_and_its_task(start: Start) -> None:
    async with start() as client:
        first = (await client.post("/text2image", json={"prompt": "x"}, headers=KEY)).json()["task_id"]
        await client.until(first)
    async with start() as client:
        again = await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
        assert again.json()["task_id"] == first
        await client.delete(f"/task/{first}")
        # It was made, and is not to be made again because its result was thrown away.
        answer = await client.post("/text2image", json={"prompt": "x"}, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_waiting_callers_may_repeat_themselves(client: Client) -> None:
    waiting = KEY | {"Prefer": "wait=60"}
    first = await client.post("/text2image", json={"prompt": "x"}, headers=waiting)
    again = await client.post("/text2image", json={"prompt": "x"}, headers=waiting)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\tb"])
async def test_an_invalid_key_is_refused(client: Client, key: str) -> None:
    answer = await client.post("/text2image", json={"prompt": "x"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


# -- search ------------------------------------------------------------------------------------------------------------


async def found(client: Client, **params: Any) -> list[str]:
    page = (await client.get("/tasks", params=params)).json()
    assert page["filtered"] == len(page["tasks"])
    return [task["prompt"] for task in reversed(page["tasks"])]


async def test_history_is_searched_by_what_the_prompt_holds(client: Client) -> None:
    for prompt in ("a red circle", "A Red square, 100%", "红色圆圈", 'say "hello" OR die'):
        await client.submit(prompt)
    assert await found(client, q="red") == ["a red circle", "A Red square, 100%"]
    assert await found(client, q="RED CIR") == ["a red circle"]
    assert await found(client, q="红色") == ["红色圆圈"]  # two characters are a word
    assert await found(client, q="红色圆") == ["红色圆圈"]
    assert await found(client, q="0%") == ["A Red square, 100%"]
    assert await found(client, q='"hello" OR') == ['say "hello" OR die']
    assert await found(client, q="circ* OR square") == []


@pytest.mark.parametrize("q", ['"', '"""', "%", "_", "*", "NEAR(", "a AND", "prompt:", "'; DROP TABLE tasks; --", "^a"])
async def test_no_search_is_a_command(client: Client, q: str) -> None:
    await client.submit("a red circle")
    assert await found(client, q=q) == []


async def test_history_is_searched_by_time(client: Client) -> None:
    await client.submit("x")
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert await found(client, since=(now - hour).isoformat(), until=(now + hour).isoformat()) == ["x"]
    assert await found(client, since=(now + hour).isoformat()) == []
    assert await found(client, until=(now - hour).isoformat()) == []
    for no_time in ("2026-11-23T08:00:00", "0.5", "1764000000", "2026-11-23"):
        assert (await client.get("/tasks", params={"since": no_time})).json()["code"] == "invalid_request"


async def test_the_ends_of_the_calendar_are_times(client: Client) -> None:
    await client.submit("x")
    first, last = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"
    assert await found(client, since=first, until=last) == ["x"]
    assert await found(client, since=last) == await found(client, until=first) == []


@pytest.mark.parametrize("q", ["a\0b", "\0", "\0\0\0\0", "\x7f", "\x85"])
async def test_a_search_for_control_characters_is_refused(client: Client, q: str) -> None:
    await client.submit("a red circle")
    answer = await client.get("/tasks", params={"q": q})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_pages_of_a_search_go_on_with_the_search(client: Client) -> None:
    for number in range(3):
        await client.submit(f"circle {number}")
        await client.submit(f"square {number}")
    answer = await client.get("/tasks", params={"q": "circle", "limit": 2, "since": "2020-01-01T00:00:00+00:00"})
    assert [task["prompt"] for task in answer.json()["tasks"]] == ["circle 2", "circle 1"]
    await client.submit("circle 3")  # what comes in between moves nothing
    answer = await client.get(answer.headers["link"].split(";")[0].strip("<>"))
    assert [task["prompt"] for task in answer.json()["tasks"]] == ["circle 0"]


async def test_a_deleted_task_is_not_found(client: Client) -> None:
    task_id = await client.submit("a red circle")
    await client.until(task_id)
    await client.delete(f"/task/{task_id}")
    assert await found(client, q="red") == []
    assert await found(client, q="re") == []


# -- bundle ------------------------------------------------------------------------------------------------------------


async def test_a_bundle_holds_the_task_and_every_picture(client: Client) -> None:
    task = await client.until(await client.submit("a cat", batch_size=3, format="webp"))
    answer = await client.get(f"/task/{task['task_id']}/bundle")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{task["task_id"]}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("task.json")) == task
        for image in task["images"]:
            assert archive.read(image["url"].rpartition("/")[2]) == (await client.get(image["url"])).content
        assert len(archive.namelist()) == 4


async def test_a_bundle_of_a_failed_task_has_the_reason(start: Start) -> None:
    async with start(models={"fake": {"fault": "error"}}) as client:
        task = await client.until(await client.submit())
        answer = await client.get(f"/task/{task['task_id']}/bundle")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == ["task.json"]
            assert json.loads(archive.read("task.json"))["error_code"] == "generation_failed"


async def test_there_is_no_bundle_before_the_end_nor_of_a_lost_picture(start: Start, tmp_path: Path) -> None:
    async with start(models={"fake": {}, "slow": {"step_seconds": 0.5}}, drain_timeout_s=0) as client:
        done = await client.until(await client.submit(model="fake"))
        for file in (tmp_path / "data" / "images").rglob("*.png"):
            file.unlink()
        answer = await client.get(f"/task/{done['task_id']}/bundle")
        assert (answer.status_code, answer.json()["code"]) == (404, "image_not_found")
        running = await client.submit(model="slow")
        answer = await client.get(f"/task/{running}/bundle")
        assert (answer.status_code, answer.json()["code"]) == (409, "task_not_finished")
        assert (await client.get("/task/none/bundle")).json()["code"] == "task_not_found"
