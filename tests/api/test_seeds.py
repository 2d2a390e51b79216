"""Seeds of 64 bits, from the request to the picture, the receipt and the replay, exact to the last digit."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagegen.builtin import default_config
from imagegen.storage.encoding import read_receipt
from tests.api.conftest import Client, Start

LARGEST = 2**64 - 1


async def made(client: Client, **fields: Any) -> dict[str, Any]:
    task = await client.until(await client.submit(**fields))
    assert task["status"] == "completed", task
    return task


@pytest.mark.parametrize("seed", [0, 2**32, 2**53 + 1, LARGEST])
async def test_a_seed_comes_back_as_it_was_given_as_number_or_as_text(client: Client, seed: int) -> None:
    for given in (seed, str(seed)):
        task = await made(client, seed=given)
        assert (task["seed"], task["images"][0]["seed"], task["receipt"]["request"]["seed"]) == (seed, seed, seed)


@pytest.mark.parametrize("given", [-1, "-1", None])
async def test_a_random_seed_is_told_and_is_exact_in_javascript(client: Client, given: object) -> None:
    one, other = await made(client, seed=given), await made(client, seed=given)
    assert one["seed"] != other["seed"]
    assert 0 <= one["seed"] < 2**32
    assert one["images"][0]["seed"] == one["seed"]


async def test_seeds_of_a_batch_continue_at_zero_after_the_largest(client: Client) -> None:
    task = await made(client, seed=LARGEST - 1, batch_size=3)
    assert [image["seed"] for image in task["images"]] == [LARGEST - 1, LARGEST, 0]


async def test_a_task_of_the_journal_keeps_its_seed(start: Start) -> None:
    async with start() as client:
        task = await made(client, seed=LARGEST)
    async with start() as client:
        assert (await client.task(task["task_id"]))["seed"] == LARGEST


async def test_the_embedded_model_draws_the_largest_seed_again_from_text_receipt_and_replay(
    start: Start, tmp_path: Path
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(default_config().read_text())
    small = {"width": 64, "height": 64, "steps": 2, "model": "tiny"}
    async with start(config=config) as client:
        task = await made(client, seed=str(LARGEST), **small)
        (image,) = task["images"]
        file = (await client.get(image["url"])).content
        assert Image.open(io.BytesIO(file)).size == (64, 64)
        receipt = read_receipt(file)
        assert receipt is not None
        assert receipt["request"]["seed"] == LARGEST
        again = await client.post(f"/task/{task['task_id']}/replay")
        assert (await client.until(again.json()["task_id"]))["replay"]["identical"] is True
        other = await made(client, seed=LARGEST - 1, **small)
        assert other["images"][0]["pixels_sha256"] != image["pixels_sha256"]
        low = await made(client, seed=2**32 - 1, **small)  # documented: the noise has the lower 32 bits
        assert low["images"][0]["pixels_sha256"] == image["pixels_sha256"]
