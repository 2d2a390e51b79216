"""The embedded model follows its prompts: a short form of the evaluation in training/evaluate.py, on one core.

Run with `-s` it prints the scores; `pytest --basetemp DIR` keeps the contact sheet.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from training.evaluate import (
    SHEET,
    brief,
    contact_sheet,
    edits,
    generate,
    open_pipeline,
    pictures_for,
    prompts,
    score,
)
from training.judge import Judge

from imagegen.builtin import builtin_model

FOLDER = builtin_model("tiny")


@pytest.fixture(scope="module")
def pipe() -> Iterator[FluxPipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_pipeline(FOLDER)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def scores(pipe: FluxPipeline, judge: Judge, kind: str, count: int, steps: int = 8) -> dict[str, float]:
    asked = prompts(kind, count)
    return told(f"{kind}, {steps} steps", score(judge, pictures_for(pipe, asked, steps), asked))


def told(what: str, shares: dict[str, float]) -> dict[str, float]:
    sys.stdout.write(f"\n{what}: {shares}\n")
    return shares


def test_it_is_small_and_its_text_encoders_load_as_they_are() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 15_000_000
    for encoder in ("text_encoder", "text_encoder_2"):
        with safe_open(FOLDER / encoder / "model.safetensors", framework="pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_its_files_name_no_place_of_the_machine_that_made_them() -> None:
    for file in FOLDER.rglob("*.json"):
        paths = [value for value in _texts(json.loads(file.read_bytes())) if value.startswith(("/", "~"))]
        assert all(len(path) == 1 for path in paths), file  # tokens of one character


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def test_sixty_prompts_that_training_never_saw_come_out_right(pipe: FluxPipeline, judge: Judge) -> None:
    shares = told("plain, placed, objects", brief(pipe, judge, 60))
    assert shares["ground"] >= 0.96
    assert shares["colour"] >= 0.93
    assert shares["thing"] >= 0.9
    assert shares["place"] >= 0.88


def test_two_objects_are_placed_as_the_prompt_says(pipe: FluxPipeline, judge: Judge) -> None:
    assert scores(pipe, judge, "two", 20)["both"] >= 0.7


def test_scenes_are_recognised(pipe: FluxPipeline, judge: Judge) -> None:
    assert scores(pipe, judge, "scenes", 18)["scene"] >= 0.88


def test_other_formats_are_as_good_as_square_ones(pipe: FluxPipeline, judge: Judge) -> None:
    shares = scores(pipe, judge, "formats", 12)
    assert shares["ground"] >= 0.9
    assert shares["thing"] >= 0.8


def test_four_steps_are_nearly_as_good_as_eight(pipe: FluxPipeline, judge: Judge) -> None:
    shares = scores(pipe, judge, "plain", 20, steps=4)
    assert shares["ground"] >= 0.95
    assert shares["colour"] >= 0.9
    assert shares["thing"] >= 0.9


def test_an_edit_keeps_the_layout_and_follows_a_new_colour(pipe: FluxPipeline, judge: Judge) -> None:
    shares = told("image-to-image at 0.6", edits(pipe, judge, strength=0.6, count=12))
    assert shares["ground"] >= 0.9
    assert shares["colour"] >= 0.85
    assert shares["thing"] >= 0.65
    assert shares["place"] >= 0.75


def test_a_strong_edit_follows_a_new_shape(pipe: FluxPipeline, judge: Judge) -> None:
    shares = told("image-to-image at 0.9", edits(pipe, judge, strength=0.9, count=12))
    assert shares["colour"] >= 0.9
    assert shares["thing"] >= 0.65


def test_unknown_words_are_ignored(pipe: FluxPipeline) -> None:
    (image,) = generate(pipe, ["an astronaut riding a red horse"])
    pixels = np.asarray(image, np.float32)
    reddish = (pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 110)
    assert reddish.mean() > 0.03  # something red
    assert np.abs(np.diff(pixels, axis=1)).mean() < 12  # and no noise, whose neighbours differ by 85


def test_a_contact_sheet_shows_what_it_draws(pipe: FluxPipeline, tmp_path: Path) -> None:
    sheet = contact_sheet(generate(pipe, SHEET[:8]), SHEET[:8], columns=4)
    sheet.save(tmp_path / "sheet.png")
    assert sheet.size == (4 * 140 + 12, 2 * 180 + 12)
