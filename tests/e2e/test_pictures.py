"""Picture files as people have them, through the real service: what is kept of a photo comes back as it was."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract.families import Shelf, left_half, picture
from tests.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with tiny models that take pictures."""
    home = tmp_path_factory.mktemp("pictures")
    shelf = Shelf(home / "models")
    config = home / "models.yaml"
    config.write_text(json.dumps({"models": {kind: shelf.entry(kind) for kind in ("sdxl", "flux-kontext")}}))
    with Server(home / "data", config, IMAGEGEN_MODELS_DIR=str(shelf.folder)) as running:
        yield running


def edited(server: Server, image: bytes, model: str = "sdxl", **fields: Any) -> Any:
    """What image2image makes of a picture file: height x width x 3, 8 bits."""
    texts = {"image": image} | {name: value for name, value in fields.items() if isinstance(value, bytes)}
    body = {"prompt": "a red circle", "model": model, "seed": 1, "strength": 0.6, "steps": 2} | fields
    body |= {name: base64.b64encode(data).decode() for name, data in texts.items()}
    answer = server.http.post("/image2image", json=body)
    assert answer.status_code == 202, answer.text
    task = server.until(answer.json()["task_id"])
    assert task["status"] == "completed", task
    return pixels_of(server.pictures(task)[0])


def pixels_of(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def test_the_kept_part_of_a_photo_is_the_photo_if_no_side_is_a_multiple_of_16(server: Server) -> None:
    photo = picture(120, 68)
    result = edited(server, photo, mask=left_half(120, 68), width=120, height=68)
    assert np.array_equal(result[:, 60:], pixels_of(photo)[:, 60:])
    assert not np.array_equal(result[:, :60], pixels_of(photo)[:, :60])
