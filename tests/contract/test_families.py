"""Every line of the table of pipelines: a tiny model of its class loads, draws and is unloaded by the real engine."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.sizes import AspectRatio, size_of
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded, Stopped, Unload, Unloaded
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import FAMILIES, diffusers_model
from imagegen.loaders.pipelines import PIPELINES
from tests.conftest import load_command, request_for
from tests.contract.families import (
    LIBRARY_WARNINGS,
    TASKS,
    Shelf,
    catalog_of,
    draw,
    left_half,
    picture,
    run,
    shelf_of,
    write_lora,
)
from tests.pipelines import KINDS

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

CPU = EngineOptions(device="cpu")

#: Their processors of pictures take torchvision, which is no dependency. test_qwen_edit.py builds them in place.
UNTRIED = {"QwenImageEditPipeline", "QwenImageEditPlusPipeline"}

#: Not those that are only wider, for tests of quantisation, or have a part that is not used.
DRAWN = tuple(kind for kind in KINDS if kind not in ("flux-wide", "ernie-enhanced"))

#: One kind of each family, and those with something of their own.
SOME = ("flux-dev", "flux-kontext", "flux2-klein", "sd3.5", "sdxl", "sd15", "qwen-image", "sana", "kolors")

#: All, of which the rest is left to the slow suite.
SOME_FIRST = [kind if kind in SOME else pytest.param(kind, marks=pytest.mark.slow) for kind in DRAWN]

#: Those that make one picture at a time.
ALONE = {"cogview4", "flux-fill", "sdxl-inpaint", "sd15-inpaint"}

#: Distilled models, and pipelines without an argument for it.
WITHOUT_NEGATIVE_PROMPT = {"flux-fill", "flux2", "flux2-klein", "flux2-klein-base", "sana-sprint"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), DRAWN) as shelf:
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(CPU)
    yield made
    made.close()


def load(engine: Any, shelf: Shelf, kind: str, **changes: Any) -> Loaded | Failed:
    catalog = catalog_of(**{kind: shelf.entry(kind) | changes})
    return engine.load(load_command(catalog, kind, shelf.folder))


def tasks_of(shelf: Shelf, kind: str) -> list[str]:
    able = PIPELINES[shelf.entry(kind)["pipeline_class"]]
    return [task for task in ("text2image", "image2image", "inpaint") if getattr(able, task)]


def test_there_is_a_kind_for_every_line_of_the_table(shelf: Shelf) -> None:
    assert {shelf.entry(kind)["pipeline_class"] for kind in DRAWN} == set(PIPELINES) - UNTRIED


@pytest.mark.parametrize("kind", DRAWN)
def test_each_class_has_the_abilities_of_its_line_in_exactly_the_requested_size(
    engine: LocalEngine, shelf: Shelf, kind: str
) -> None:
    assert isinstance(load(engine, shelf, kind), Loaded)
    for task in tasks_of(shelf, kind):
        ratios: tuple[AspectRatio, ...] = (
            get_args(AspectRatio) if task == tasks_of(shelf, kind)[0] else ("16:9", "9:21")
        )
        for ratio in ratios:
            size = size_of(ratio, 64)
            pixels = draw(engine, kind, task, width=size.width, height=size.height, steps=1)
            assert pixels.shape == (size.height, size.width, 3), (task, ratio)
            assert pixels.std() > 5, (task, ratio)
        pixels = draw(engine, kind, task)
        assert np.array_equal(draw(engine, kind, task), pixels), task
        assert not np.array_equal(draw(engine, kind, task, seed=8), pixels), task
    assert isinstance(engine.unload(Unload(model=kind)), Unloaded)
    gone = run(engine, kind)
    assert isinstance(gone, Failed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SOME_FIRST)
def test_the_pixels_are_those_that_the_library_rounds_on_the_host(
    engine: LocalEngine, shelf: Shelf, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    postprocess, arrays = VaeImageProcessor.postprocess, []

    def recording(self: Any, image: Any, output_type: str = "pil", do_denormalize: Any = None) -> Any:
        arrays.append(postprocess(self, image, "np", do_denormalize))
        return postprocess(self, image, output_type, do_denormalize)

    monkeypatch.setattr(VaeImageProcessor, "postprocess", recording)
    assert isinstance(load(engine, shelf, kind, torch_dtype=dtype), Loaded)
    for task in set(tasks_of(shelf, kind)) - {"inpaint"}:
        pixels = draw(engine, kind, task, steps=1)
        (picture,) = arrays.pop()
        assert np.array_equal(pixels, (picture * 255).round().astype(np.uint8)), task


@pytest.mark.parametrize("kind", [kind for kind in DRAWN if kind not in WITHOUT_NEGATIVE_PROMPT])
def test_a_negative_prompt_has_an_effect_if_the_entry_enables_it(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    by_true_cfg = {"true_cfg_scale": 3.0} if kind.startswith("flux") else {}
    catalog = catalog_of(**{kind: shelf.entry(kind) | by_true_cfg})
    assert catalog.models[kind].supports_negative_prompt
    assert isinstance(engine.load(load_command(catalog, kind, shelf.folder)), Loaded)
    task = tasks_of(shelf, kind)[0]
    plain = draw(engine, kind, task)
    other = draw(engine, kind, task, negative_prompt="a zebra, ugly, blurred")
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("kind", sorted(WITHOUT_NEGATIVE_PROMPT))
def test_a_class_without_negative_prompts_does_not_support_them(shelf: Shelf, kind: str) -> None:
    spec = catalog_of(**{kind: shelf.entry(kind)}).models[kind]
    assert not spec.supports_negative_prompt


@pytest.mark.parametrize(
    "kind",
    ["flux-dev", "flux-kontext", "flux-fill", "flux2-klein", "sd3", "sdxl", "sd15-inpaint", "qwen-image", "z-image"],
)
def test_inpainting_leaves_the_black_part_alone(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    assert isinstance(load(engine, shelf, kind), Loaded)
    # The second size is no multiple of 16: 1080 is none either.
    for width, height in ((96, 64), (90, 54)):
        pictures = {"init_image": picture(width, height), "mask_image": left_half(width, height)}
        drawn = draw(engine, kind, "inpaint", pictures=pictures, width=width, height=height)
        original = np.asarray(Image.open(io.BytesIO(picture(width, height))))
        kept = width // 2
        assert np.array_equal(drawn[:, kept:], original[:, kept:])
        assert not np.array_equal(drawn[:, :kept], original[:, :kept])


@pytest.mark.parametrize("kind", ["sdxl", "flux-dev"])
def test_a_photo_is_neither_scaled_nor_moved_if_its_sides_are_no_multiples(
    engine: LocalEngine, shelf: Shelf, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess, seen = VaeImageProcessor.preprocess, []

    def recording(self: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(image)
        return preprocess(self, image, *args, **kwargs)

    monkeypatch.setattr(VaeImageProcessor, "preprocess", recording)
    assert isinstance(load(engine, shelf, kind), Loaded)
    draw(engine, kind, "image2image", pictures={"init_image": picture(90, 54)}, width=90, height=54)
    original = np.asarray(Image.open(io.BytesIO(picture(90, 54))))
    assert seen[0].size == (96, 64)
    assert np.array_equal(np.asarray(seen[0])[5:59, 3:93], original)
    assert np.array_equal(np.asarray(seen[0])[:5, 3:93], np.repeat(original[:1], 5, axis=0))


def test_the_same_seed_gives_the_same_pixels_whatever_came_in_between(engine: LocalEngine, shelf: Shelf) -> None:
    before = {}
    for kind in SOME:
        assert isinstance(load(engine, shelf, kind), Loaded)
        before[kind] = {task: draw(engine, kind, task) for task in tasks_of(shelf, kind)}
    # Now all of them are loaded, and each has drawn.
    for kind in reversed(SOME):
        for task, pixels in before[kind].items():
            assert np.array_equal(draw(engine, kind, task), pixels), (kind, task)
    for kind in SOME:
        engine.unload(Unload(model=kind))
    for kind in SOME:
        assert isinstance(load(engine, shelf, kind), Loaded)
        for task, pixels in before[kind].items():
            assert np.array_equal(draw(engine, kind, task), pixels), (kind, task)


@pytest.mark.parametrize("kind", ["sd3", "sdxl", "qwen-image", "sana"])
def test_a_picture_of_a_batch_is_that_of_its_seed(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    assert isinstance(load(engine, shelf, kind), Loaded)
    batch = run(engine, kind, seed=7, batch_size=3)
    assert isinstance(batch, Generated)
    assert batch.images[2].rgb == draw(engine, kind, seed=9).tobytes()


@pytest.mark.parametrize("kind", SOME_FIRST)
def test_a_lora_counts_for_its_request_only(engine: LocalEngine, shelf: Shelf, kind: str, tmp_path: Path) -> None:
    spec = catalog_of(**{kind: shelf.entry(kind)}).models[kind]
    assert isinstance(load(engine, shelf, kind), Loaded)
    file = write_lora(shelf.model(kind), tmp_path / "style.safetensors")
    for task in tasks_of(shelf, kind) if spec.supports_lora else ():
        plain = draw(engine, kind, task)
        with_lora = run(engine, kind, task, file)
        assert isinstance(with_lora, Generated)
        assert with_lora.warnings == ()
        assert with_lora.images[0].rgb != plain.tobytes(), task
        assert np.array_equal(draw(engine, kind, task), plain), task


def stopped(engine: LocalEngine, kind: str, task: str) -> Generated | Stopped | Failed:
    """The outcome of a picture that is stopped after its second step."""
    stop = threading.Event()
    pictures, fields = TASKS[task]
    request = request_for(**{"prompt": "a star", "steps": 8, "guidance_scale": 3.0, **fields})
    command = Generate(model=kind, request=request, **pictures)
    return engine.generate(command, stop, lambda done, total, _=b"": stop.set() if done == 2 else None)


@pytest.mark.parametrize("kind", SOME_FIRST)
def test_a_stopped_picture_leaves_nothing_behind(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    """A stop leaves schedulers, caches and hooks in the middle of their work."""
    assert isinstance(load(engine, shelf, kind), Loaded)
    for task in tasks_of(shelf, kind):
        before = draw(engine, kind, task, steps=4)
        outcome = stopped(engine, kind, task)
        assert isinstance(outcome, Stopped), task
        assert np.array_equal(draw(engine, kind, task, steps=4), before), task


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "kolors", "flux-dev"])
def test_the_smallest_strength_still_takes_a_step(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    assert isinstance(load(engine, shelf, kind), Loaded)
    for strength in (0.01, 0.07, 0.3, 1.0):
        draw(engine, kind, "image2image", strength=strength, steps=1)


@pytest.mark.parametrize(
    ("kind", "longest"),
    [("sd3", 1536), ("aura-flow", 512), ("z-image", 2048), pytest.param("lumina2", 8192, marks=pytest.mark.slow)],
)
def test_a_picture_is_as_long_as_the_files_say_and_no_longer(
    engine: LocalEngine, shelf: Shelf, kind: str, longest: int
) -> None:
    catalog = catalog_of(**{kind: shelf.entry(kind)})
    spec = catalog.models[kind]
    assert FAMILIES[spec.type].loader.longest_side(spec, Folders(shelf.folder, shelf.folder)) == longest
    assert isinstance(load(engine, shelf, kind), Loaded)
    assert draw(engine, kind, width=longest, height=16, steps=1).shape == (16, longest, 3)
    assert draw(engine, kind, width=16, height=longest, steps=1).shape == (longest, 16, 3)
    failed = run(engine, kind, width=longest + 1, height=16, steps=1)
    assert isinstance(failed, Failed)
    assert failed.message == f"The model makes pictures of at most {longest} pixels a side."


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler"])
def test_a_distilled_scheduler_runs_no_more_steps_than_it_supports(
    engine: LocalEngine, shelf: Shelf, tmp_path: Path, scheduler: str
) -> None:
    shutil.copytree(shelf.model("sd15"), tmp_path / "sd15")
    for name, field, value in (
        ("model_index.json", "scheduler", ["diffusers", scheduler]),
        ("scheduler/scheduler_config.json", "_class_name", scheduler),
    ):
        file = tmp_path / "sd15" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    copies = Shelf(tmp_path)
    copies._built.add("sd15")
    assert isinstance(load(engine, copies, "sd15"), Loaded)
    for strength in (0.01, 0.03, 0.3, 1.0):
        draw(engine, "sd15", "image2image", strength=strength, steps=4)
        draw(engine, "sd15", "inpaint", strength=strength, steps=4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["flux-dev", "sd3.5", "sdxl", "sana"])
def test_half_the_bytes_draw_nearly_the_same(engine: LocalEngine, shelf: Shelf, kind: str, dtype: str) -> None:
    assert isinstance(full := load(engine, shelf, kind), Loaded)
    reference = draw(engine, kind).astype(float)
    assert isinstance(half := load(engine, shelf, kind, torch_dtype=dtype), Loaded)
    assert half.weight_bytes < 0.6 * full.weight_bytes
    assert np.abs(draw(engine, kind).astype(float) - reference).mean() < 12


def test_the_checker_of_1_5_is_left_out(engine: LocalEngine, shelf: Shelf) -> None:
    """The safety checker of this kind rejects every picture."""
    assert isinstance(load(engine, shelf, "sd15-checked"), Loaded)
    assert draw(engine, "sd15-checked").std() > 5


# -- damaged models ------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(shelf: Shelf, tmp_path: Path) -> Shelf:
    """Copies of two models that the tests damage; a third one stays undamaged."""
    for kind in ("flux-dev", "sdxl", "sd15"):
        shutil.copytree(shelf.model(kind), tmp_path / kind)
    copies = Shelf(tmp_path)
    copies._built.update({"flux-dev", "sdxl", "sd15"})
    return copies


def refused(engine: LocalEngine, damaged: Shelf, kind: str) -> Failed:
    """The answer to the load of a damaged model; the others work before and after it."""
    assert isinstance(load(engine, damaged, "sd15"), Loaded)
    before = draw(engine, "sd15")
    failed = load(engine, damaged, kind)
    assert isinstance(failed, Failed), failed
    assert str(damaged.folder) not in failed.message
    assert np.array_equal(draw(engine, "sd15"), before)
    return failed


@pytest.mark.parametrize(
    "file",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    ],
)
def test_a_file_that_was_cut_off_is_named(engine: LocalEngine, damaged: Shelf, file: str) -> None:
    path = damaged.folder / "flux-dev" / file
    whole = path.read_bytes()
    for length in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        failed = load(engine, damaged, "flux-dev")
        assert isinstance(failed, Failed)
        assert failed.code is FailureCode.WEIGHTS_CORRUPT
        assert file in failed.message
    refused(engine, damaged, "flux-dev")


def test_a_lack_of_memory_while_a_file_is_read_is_not_the_files_fault(
    engine: LocalEngine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library fails to read the file."""

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(safetensors.torch, "load_file", full)
    failed = load(engine, shelf, "flux-dev")
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY


def test_weights_of_another_shape_are_refused(engine: LocalEngine, damaged: Shelf) -> None:
    config = damaged.folder / "sdxl" / "vae" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"block_out_channels": [16, 16, 16, 16]}))
    assert refused(engine, damaged, "sdxl").code is FailureCode.WEIGHTS_CORRUPT


def test_a_tokenizer_of_another_model_is_refused(engine: LocalEngine, damaged: Shelf, shelf: Shelf) -> None:
    home = damaged.folder / "flux-dev"
    shutil.rmtree(home / "tokenizer_2")
    shutil.copytree(shelf.model("krea2") / "tokenizer", home / "tokenizer_2")
    assert refused(engine, damaged, "flux-dev").code is FailureCode.WEIGHTS_CORRUPT


def test_a_tokenizer_without_its_vocabulary_is_refused(engine: LocalEngine, damaged: Shelf) -> None:
    """The library would make a vocabulary of three words, and the pictures would ignore the prompt."""
    (damaged.folder / "flux-dev" / "tokenizer" / "tokenizer.json").unlink()
    failed = refused(engine, damaged, "flux-dev")
    assert failed.code is FailureCode.WEIGHTS_CORRUPT
    assert "tokenizer" in failed.message


@pytest.mark.parametrize(
    ("part", "weights", "pickled"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_weights_that_execute_code_are_not_looked_at(
    engine: LocalEngine, damaged: Shelf, monkeypatch: pytest.MonkeyPatch, part: str, weights: str, pickled: str
) -> None:
    home = damaged.folder / "sdxl" / part
    # The libraries would take it: it is the same weights.
    torch.save(safetensors.torch.load_file(home / weights), home / pickled)
    (home / weights).unlink()
    failed = refused(engine, damaged, "sdxl")
    assert failed.code is FailureCode.WEIGHTS_MISSING
    assert "safetensors" in failed.message
    assert f"'{part}'" in failed.message
    # And without our own look at the folder, the libraries are told not to.
    monkeypatch.setattr(diffusers_model, "check_pipeline", lambda *_: None)
    assert isinstance(load(engine, damaged, "sdxl"), Failed)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="is about a machine without torchvision")
@pytest.mark.parametrize(
    ("kind", "part", "cls"),
    [
        ("flux2", "tokenizer", "PixtralProcessor"),
        ("qwen-image", "processor", "Qwen2VLProcessor"),
    ],
)
def test_a_processor_that_needs_torchvision_reports_it(
    engine: LocalEngine, shelf: Shelf, tmp_path: Path, kind: str, part: str, cls: str
) -> None:
    """The real FLUX.2 and Qwen-Image-Edit have such processors."""
    shutil.copytree(shelf.model(kind), tmp_path / kind)
    index = json.loads((tmp_path / kind / "model_index.json").read_text())
    entry = shelf.entry(kind)
    if part not in index:
        shutil.copytree(tmp_path / kind / "tokenizer", tmp_path / kind / part)
        transformers.Qwen2VLImageProcessorPil().save_pretrained(tmp_path / kind / part)
        entry |= {"pipeline_class": "QwenImageEditPlusPipeline"}
    index |= {part: ["transformers", cls], "_class_name": entry["pipeline_class"]}
    (tmp_path / kind / "model_index.json").write_text(json.dumps(index))
    failed = engine.load(load_command(catalog_of(m=entry), "m", tmp_path))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.ENGINE_MISSING
    assert "needs torchvision, which is not installed: `make vision`" in failed.message


def test_a_class_that_is_not_the_entrys_is_refused(engine: LocalEngine, damaged: Shelf) -> None:
    index = damaged.folder / "sdxl" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "FluxPipeline"))
    catalog = catalog_of(
        sdxl=damaged.entry("sd15") | {"local_path": "sdxl", "pipeline_class": "StableDiffusionXLPipeline"}
    )
    failed = engine.load(load_command(catalog, "sdxl", damaged.folder))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_REFUSED
    assert "StableDiffusionXLPipeline" in failed.message


# -- the other engine ----------------------------------------------------------------------------------------------


def test_a_worker_process_draws_the_same(engine: LocalEngine, shelf: Shelf) -> None:
    child = WorkerEngine(CPU)
    try:
        for kind in ("sd3", "sdxl", "sana"):
            assert isinstance(load(engine, shelf, kind), Loaded)
            assert isinstance(load(child, shelf, kind), Loaded)
            assert np.array_equal(draw(child, kind), draw(engine, kind)), kind
    finally:
        child.close()


#: What both the class and the kind of this house can make several of in a call.
BATCHING = [kind for kind in SOME_FIRST if (kind if isinstance(kind, str) else kind.values[0]) not in ALONE]


@pytest.mark.parametrize("kind", BATCHING)
def test_in_one_call_each_picture_is_that_of_its_own_prompt_except_for_rounding(
    engine: LocalEngine, shelf: Shelf, kind: str
) -> None:
    load(engine, shelf, kind, max_batch=4)
    negative = {} if kind in WITHOUT_NEGATIVE_PROMPT else {"negative_prompt": "a bad picture"}
    words = ("a red circle", "a much longer prompt about a very blue sky and many green trees in the evening light")
    requests = [
        request_for(prompt, steps=2, guidance_scale=3.0, seed=seed, width=72, height=64, **negative)
        for seed, prompt in enumerate(words)
    ]
    command = Generate(model=kind, request=requests[0], companions=(requests[1],), together=True)
    outcome = engine.generate(command, threading.Event(), lambda *_: None)
    assert isinstance(outcome, Generated), outcome
    for request, image in zip(requests, outcome.images, strict=True):
        alone = engine.generate(Generate(model=kind, request=request), threading.Event(), lambda *_: None)
        assert isinstance(alone, Generated)
        levels = np.frombuffer(image.rgb, np.uint8).astype(int) - np.frombuffer(alone.images[0].rgb, np.uint8)
        assert np.abs(levels).max() <= 2
