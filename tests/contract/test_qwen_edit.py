"""Qwen-Image-Edit, whose processor cannot be read from a folder without torchvision, so the test builds it."""

import io
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from PIL import Image

from imagegen.core.provenance import Provenance
from imagegen.loaders.adapters import Adapters
from imagegen.loaders.base import Inputs
from imagegen.loaders.diffusers_model import DiffusersModel
from imagegen.loaders.other import OtherSpec
from imagegen.testing.engine import SCRIPTED
from tests.conftest import request_for
from tests.contract.families import LIBRARY_WARNINGS, left_half, picture
from tests.pipelines.others import qwen_edit

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]


@pytest.fixture(autouse=True)
def small_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines scale pictures to a megapixel, which takes a minute; here it is a 64th of that."""
    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus, pipeline_qwenimage_edit_inpaint):
        real = module.calculate_dimensions
        monkeypatch.setattr(module, "calculate_dimensions", partial(_smaller, real))


def _smaller(real: Any, area: float, ratio: float) -> Any:
    return real(area / 64, ratio)


def model_of(name: str) -> DiffusersModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipeline = qwen_edit(name)
    pipeline.set_progress_bar_config(disable=True)
    entry = {"name": "A", "type": "diffusers", "pipeline_class": name, "local_path": "qwen"}
    spec = OtherSpec.model_validate(entry)
    made_by: Provenance = SCRIPTED
    return DiffusersModel(spec, pipeline, Adapters(pipeline, [], []), [], 0, made_by, "none", None)


def draw(model: DiffusersModel, inputs: Inputs, width: int, height: int, **changes: Any) -> Any:
    request = request_for(width=width, height=height, steps=1, guidance_scale=3.0, strength=1.0, **changes)
    (made,) = model.generate(request, inputs, lambda *_: None)
    return np.frombuffer(made.rgb, np.uint8).reshape(made.height, made.width, 3)


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_it_edits_a_picture_in_the_requested_size(name: str) -> None:
    model = model_of(name)
    for width, height in ((64, 64), (90, 54)):
        drawn = draw(model, Inputs(init_image=picture()), width, height)
        assert drawn.shape == (height, width, 3)
        assert drawn.std() > 5
    assert not np.array_equal(draw(model, Inputs(init_image=picture()), 90, 54, prompt="a zebra"), drawn)
    assert not np.array_equal(draw(model, Inputs(init_image=left_half()), 90, 54), drawn)


def test_a_mask_keeps_the_black_part_at_every_size() -> None:
    """With a mask it draws in its own size: about a megapixel, multiples of 32."""
    model = model_of("QwenImageEditPipeline")
    width, height = 90, 54
    photo, mask = picture(width, height), left_half(width, height)
    drawn = draw(model, Inputs(init_image=photo, mask_image=mask), width, height)
    with Image.open(io.BytesIO(photo)) as image:
        original = np.asarray(image)
    assert np.array_equal(drawn[:, 45:], original[:, 45:])
    assert not np.array_equal(drawn[:, :45], original[:, :45])
