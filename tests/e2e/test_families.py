"""The families in the real service: each one draws over HTTP, and one that cannot run reports the reason."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract.families import Shelf, left_half, picture, small
from tests.gguf_files import write_gguf
from tests.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with a tiny model of each family."""
    home = tmp_path_factory.mktemp("families")
    shelf = Shelf(home / "models")
    models: dict[str, dict[str, Any]] = {kind: shelf.entry(kind) for kind in ("flux-dev", "sdxl", "sana")}
    write_gguf(shelf.model("flux-dev"), shelf.folder / "q8.gguf", "Q8_0")
    models["q8"] = small(type="gguf", local_path="q8.gguf", base_model="flux-dev")
    models["four-bits"] = small(type="flux_nunchaku", local_path="none.safetensors", base_model="flux-dev")
    config = home / "models.yaml"
    config.write_text(json.dumps({"models": models}))
    with Server(home / "data", config, IMAGEGEN_MODELS_DIR=str(shelf.folder)) as running:
        yield running


def drawn(server: Server, task_id: str) -> Any:
    task = server.until(task_id)
    assert task["status"] == "completed", task
    with Image.open(io.BytesIO(server.pictures(task)[0])) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("model", ["flux-dev", "sdxl", "sana", "q8"])
def test_each_family_draws_in_the_requested_ratio(server: Server, model: str) -> None:
    pixels = drawn(server, server.submit(model=model, aspect_ratio="16:9", seed=1))
    assert pixels.shape == (64, 114, 3)
    assert pixels.std() > 5


def test_a_mask_keeps_the_black_part_over_http(server: Server) -> None:
    body = {
        "prompt": "a red circle",
        "model": "sdxl",
        "image": base64.b64encode(picture(64, 64)).decode(),
        "mask": base64.b64encode(left_half(64, 64)).decode(),
        "strength": 0.6,
    }
    answer = server.http.post("/image2image", json=body)
    assert answer.status_code == 202, answer.text
    pixels = drawn(server, answer.json()["task_id"])
    with Image.open(io.BytesIO(picture(64, 64))) as original:
        assert np.array_equal(pixels[:, 32:], np.asarray(original)[:, 32:])


def test_an_unsupported_request_is_refused_before_it_is_queued(server: Server) -> None:
    body = {"prompt": "a red circle", "model": "sana", "image": base64.b64encode(picture(64, 64)).decode()}
    answer = server.http.post("/image2image", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "unsupported_capability"


def test_a_model_that_cannot_run_here_has_a_reason_and_the_others_run(server: Server) -> None:
    failed, after = server.submit(model="four-bits"), server.submit(model="flux-dev")
    task = server.until(failed)
    assert (task["status"], task["error_code"]) in {("failed", "engine_missing"), ("failed", "unsupported_device")}
    assert "unchaku" in task["error_message"]
    assert drawn(server, after).std() > 5


def test_the_list_has_the_capabilities_of_each_model(server: Server) -> None:
    models = {model["id"]: model for model in server.http.get("/models").raise_for_status().json()["models"]}
    assert set(models) == {"flux-dev", "sdxl", "sana", "q8", "four-bits"}
    assert [models["sana"][f"supports_{task}"] for task in ("text2img", "img2img", "inpaint")] == [True, False, False]
    assert [models["q8"][f"supports_{task}"] for task in ("text2img", "img2img", "inpaint")] == [True, True, True]
