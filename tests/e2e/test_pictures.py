"""Real picture files through the real service: the kept part of a photo stays the same."""

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
from tests.unit.test_pictures import DISPLAY_P3, P3_RED, cut_out, file_of


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
    """The result of image2image for a picture file: height x width x 3, 8 bits."""
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


def test_colours_of_transparent_pixels_do_not_return(server: Server) -> None:
    """The transparent part of a cut-out still has the colours of what was removed."""
    photo = cut_out().resize((120, 68), Image.Resampling.NEAREST)
    result = edited(server, file_of(photo), mask=left_half(120, 68), width=120, height=68)
    assert np.array_equal(result[:, 80:], np.full((68, 40, 3), 255))
    assert result[0, 70].tolist() == [227, 127, 127]


def test_the_hole_of_a_white_mask_is_repainted(server: Server) -> None:
    photo, mask = picture(64, 64), Image.new("RGBA", (64, 64), "white")
    mask.paste((255, 255, 255, 0), (0, 0, 32, 64))
    result = edited(server, photo, mask=file_of(mask), width=64, height=64)
    assert np.array_equal(result[:, 32:], pixels_of(photo)[:, 32:])
    assert not np.array_equal(result[:, :32], pixels_of(photo)[:, :32])


def test_the_kept_part_of_a_photo_in_display_p3_has_the_colours_that_people_saw(server: Server) -> None:
    photo = file_of(Image.new("RGB", (64, 64), P3_RED), "JPEG", quality=100, icc_profile=DISPLAY_P3)
    result = edited(server, photo, mask=left_half(64, 64), width=64, height=64)
    assert np.abs(result[:, 32:].astype(int) - (250, 60, 30)).max() <= 4


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "BMP", "TIFF"])
def test_files_of_this_format_are_read(server: Server, kind: str) -> None:
    photo = Image.linear_gradient("L").resize((64, 64))
    result = edited(server, file_of(photo, kind), mask=left_half(64, 64), width=64, height=64)
    assert np.abs(result[:, 32:].astype(int) - np.asarray(photo)[:, 32:, None]).max() <= 6


def test_an_unsupported_format_is_refused_with_the_supported_ones(server: Server) -> None:
    body = {"prompt": "x", "model": "sdxl", "image": base64.b64encode(file_of(Image.new("L", (9, 9)), "ICO")).decode()}
    answer = server.http.post("/image2image", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
    assert "PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF" in answer.json()["detail"]


@pytest.mark.parametrize("model", ["sdxl", "flux-kontext"])
def test_a_portrait_stays_a_portrait_with_its_head(server: Server, model: str) -> None:
    """A phone stores a portrait sideways, with its orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    portrait = file_of(Image.linear_gradient("L").resize((128, 96)).convert("RGB"), "JPEG", exif=exif)
    assert edited(server, portrait, model).shape == (80, 48, 3)
    assert edited(server, portrait, model, aspect_ratio="input").shape == (80, 48, 3)
    assert edited(server, portrait, model, aspect_ratio="1:1").shape == (64, 64, 3)
    assert edited(server, portrait, model, width=100, height=80).shape == (80, 100, 3)
