"""The contract of Engine, in a thread and in a worker process."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import FailureCode
from imagegen.core.task import GenerationRequest
from imagegen.gpu.engine import Engine, LocalEngine
from imagegen.gpu.protocol import (
    DeviceMemory,
    Failed,
    Generate,
    Generated,
    Loaded,
    Measured,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.gpu.worker_engine import WorkerEngine
from tests.conftest import CPU, fake_catalog, load_command, request_for

ENGINES: dict[str, Callable[[], Engine]] = {"thread": lambda: LocalEngine(CPU), "process": lambda: WorkerEngine(CPU)}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = ENGINES[request.param]()
    yield made
    made.close()


def run(engine: Engine, model: str, request: GenerationRequest, **command: object) -> Generated | Stopped | Failed:
    return engine.generate(
        Generate.model_validate({"model": model, "request": request, **command}),
        threading.Event(),
        lambda *step: None,
    )


def loaded(engine: Engine, catalog: Catalog, model: str) -> Engine:
    assert isinstance(engine.load(load_command(catalog, model)), Loaded)
    return engine


def test_a_loaded_model_makes_exactly_the_requested_pictures(engine: Engine) -> None:
    loaded(engine, fake_catalog(), "fake")
    outcome = run(engine, "fake", request_for(width=61, height=33, batch_size=3))
    assert isinstance(outcome, Generated)
    assert [(p.width, p.height, p.seed, len(p.rgb)) for p in outcome.images] == [
        (61, 33, seed, 61 * 33 * 3) for seed in (7, 8, 9)
    ]


def test_every_step_is_reported_in_order(engine: Engine) -> None:
    loaded(engine, fake_catalog(), "fake")
    steps: list[tuple[int, int]] = []
    command = Generate(model="fake", request=request_for(steps=3, batch_size=2))
    engine.generate(command, threading.Event(), lambda step, total, _=b"": steps.append((step, total)))
    assert steps == [(k, 6) for k in range(1, 7)]


def test_a_stop_ends_the_work_between_two_steps_and_leaves_the_engine_well(engine: Engine) -> None:
    loaded(engine, fake_catalog(fake={"step_seconds": 0.05}), "fake")
    stop = threading.Event()
    steps: list[int] = []

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        steps.append(step)
        if step == 2:
            stop.set()

    outcome = engine.generate(Generate(model="fake", request=request_for(steps=100)), stop, on_step)
    assert isinstance(outcome, Stopped)
    assert len(steps) <= 4  # the one under way, and one more while the word crosses the pipe
    assert isinstance(run(engine, "fake", request_for()), Generated)


def test_a_stop_that_comes_late_does_not_stop_the_next_request(engine: Engine) -> None:
    loaded(engine, fake_catalog(), "fake")
    stop = threading.Event()
    engine.generate(Generate(model="fake", request=request_for(steps=1)), stop, lambda step, total, _=b"": stop.set())
    assert isinstance(run(engine, "fake", request_for()), Generated)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("error", FailureCode.GENERATION_FAILED),
        ("out_of_memory", FailureCode.OUT_OF_MEMORY),
    ],
)
def test_a_failing_step_is_an_answer_and_the_model_stays(engine: Engine, fault: str, code: FailureCode) -> None:
    loaded(engine, fake_catalog(fake={"fault": fault, "fault_prompt": "poison"}), "fake")
    failed = run(engine, "fake", request_for("poison"))
    assert isinstance(failed, Failed)
    assert failed.code is code
    assert "Traceback" in failed.traceback
    assert isinstance(run(engine, "fake", request_for()), Generated)


def test_a_model_that_stays_warm_comes_back_without_a_load_and_draws_the_same(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    first = run(engine, "tiny", request_for())
    assert isinstance(engine.unload(Unload(model="tiny", keep_warm=True)), Unloaded)
    assert isinstance(run(engine, "tiny", request_for()), Failed)
    back = engine.load(load_command(shipped, "tiny"))
    assert isinstance(back, Loaded)
    assert back.warm
    assert _same_images(run(engine, "tiny", request_for()), first)


def test_a_warm_model_that_is_dropped_or_changed_is_loaded_again(engine: Engine) -> None:
    for again, warm in (({}, True), ({"steps": 9, "description": "Faster."}, True), ({"memory_mb": 1}, False)):
        loaded(engine, fake_catalog(), "fake")
        engine.unload(Unload(model="fake", keep_warm=True))
        back = engine.load(load_command(fake_catalog(fake=again), "fake"))
        assert isinstance(back, Loaded)
        assert back.warm is warm
    engine.unload(Unload(model="fake", keep_warm=True))
    engine.unload(Unload(model="fake"))
    gone = engine.load(load_command(fake_catalog(fake={"steps": 9}), "fake"))
    assert isinstance(gone, Loaded)
    assert not gone.warm


def test_an_out_of_memory_call_is_retried_without_caches(engine: Engine) -> None:
    loaded(engine, fake_catalog(fake={"fault": "full_cache", "fault_prompt": "large"}), "fake")
    outcome = run(engine, "fake", request_for("large"))
    assert isinstance(outcome, Generated)
    assert outcome.made_room
    again = run(engine, "fake", request_for("large"))
    assert isinstance(again, Generated)
    assert not again.made_room


def test_a_second_attempt_reports_that_it_freed_memory(engine: Engine) -> None:
    catalog = fake_catalog(fake={"fault": "full_cache", "fault_prompt": "large"}, kept={})
    loaded(engine, catalog, "kept")
    engine.unload(Unload(model="kept", keep_warm=True))
    loaded(engine, catalog, "fake")
    for prompt, made_room in (("small", False), ("large", True)):
        outcome = run(engine, "fake", request_for(prompt))
        assert isinstance(outcome, Generated)
        assert outcome.made_room is made_room
    back = engine.load(load_command(catalog, "kept"))
    assert isinstance(back, Loaded)
    assert not back.warm


def test_a_failing_load_is_an_answer(engine: Engine) -> None:
    failed = engine.load(load_command(fake_catalog(bad={"fault": "error", "fault_at": "load"}), "bad"))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.LOAD_FAILED


def test_the_bytes_that_a_load_has_read_are_available_in_another_thread(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(8 * 2**20))
    catalog = fake_catalog(slow={"local_path": "weights", "read_seconds_per_mib": 0.05}, fake={})
    assert isinstance(engine.load(load_command(catalog, "fake")), Loaded)
    seen: list[int] = []
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(engine.load, load_command(catalog, "slow", tmp_path))
        while not loading.done():
            seen.append(engine.bytes_read)
            time.sleep(0.01)
    assert isinstance(loading.result(), Loaded)
    assert any(2 * 2**20 <= read <= 6 * 2**20 for read in seen)
    assert 8 * 2**20 <= engine.bytes_read < 16 * 2**20


def test_missing_weights_have_advice_without_an_absolute_path(engine: Engine, shipped: Catalog) -> None:
    failed = engine.load(load_command(shipped, "flux.1-dev"))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WEIGHTS_MISSING
    assert "`imagegen models pull flux.1-dev` fetches" in failed.message
    assert " /" not in failed.message


def test_running_a_model_that_is_not_loaded_is_an_answer(engine: Engine) -> None:
    failed = run(engine, "nobody", request_for())
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.GENERATION_FAILED


def test_unloading_gives_host_memory_back(engine: Engine) -> None:
    before = engine.measure()
    full = engine.load(load_command(fake_catalog(big={"memory_mb": 256}), "big"))
    empty = engine.unload(Unload(model="big"))
    assert isinstance(before, Measured)
    assert isinstance(full, Loaded)
    assert isinstance(empty, Unloaded)
    assert full.memory.host - before.memory.host > 200 * 2**20
    assert full.memory.host - empty.memory.host > 200 * 2**20


def test_unloading_a_model_that_is_not_loaded_is_no_failure(engine: Engine) -> None:
    assert isinstance(engine.unload(Unload(model="nobody")), Unloaded)


# -- the embedded model, through the real loader -----------------------------------------------------------------------

_PIXELS: dict[str, bytes] = {}


def mean_colour(rgb: bytes, size: int, box: tuple[int, int, int, int]) -> tuple[float, ...]:
    part = Image.frombytes("RGB", (size, size), rgb).crop(box).resize((1, 1), Image.Resampling.BOX)
    colour = part.getpixel((0, 0))
    assert isinstance(colour, tuple)
    return colour


def test_the_embedded_model_follows_its_prompts(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    outcome = run(engine, "tiny", request_for(width=128, height=128, steps=8))
    assert isinstance(outcome, Generated)
    rgb = outcome.images[0].rgb
    red, _, blue = mean_colour(rgb, 128, (52, 52, 76, 76))
    assert red > 150 > blue
    red, _, blue = mean_colour(rgb, 128, (0, 0, 16, 16))
    assert blue > 150 > red


def test_the_stages_of_each_picture_are_measured(engine: Engine, shipped: Catalog) -> None:
    engine.load(load_command(shipped, "tiny"))
    for together, pictures in ((False, 2), (True, 1)):
        command = Generate(model="tiny", request=request_for(batch_size=2), together=together)
        made = engine.generate(command, threading.Event(), lambda *_: None)
        assert isinstance(made, Generated)
        assert [it.stage for it in made.stages] == ["encode", "denoise", "decode"] * pictures
        ends = [it.begin_s + it.seconds for it in made.stages]
        assert all(it.begin_s >= end - 1e-9 for it, end in zip(made.stages, [0.0, *ends], strict=False))
        assert all(it.seconds > 0 for it in made.stages if it.stage != "encode")


def test_same_seed_same_pixels_in_both_engines_and_after_a_reload(engine: Engine, shipped: Catalog) -> None:
    request = request_for(width=96, height=160)
    first = run(loaded(engine, shipped, "tiny"), "tiny", request)
    engine.unload(Unload(model="tiny"))
    second = run(loaded(engine, shipped, "tiny"), "tiny", request)
    assert isinstance(first, Generated)
    assert isinstance(second, Generated)
    assert first.images == second.images
    assert _PIXELS.setdefault("reference", first.images[0].rgb) == first.images[0].rgb


def test_a_picture_of_a_batch_is_the_picture_of_its_seed_alone(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    batch = run(engine, "tiny", request_for(batch_size=2))
    alone = run(engine, "tiny", request_for(seed=8))
    assert isinstance(batch, Generated)
    assert isinstance(alone, Generated)
    assert batch.images[1] == alone.images[0]


def together(*requests: GenerationRequest, model: str = "tiny") -> Generate:
    return Generate(model=model, request=requests[0], companions=requests[1:], together=True)


def test_pictures_of_one_call_differ_from_separate_calls_only_by_rounding(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    prompts = (
        "a red circle on a blue background",
        "a green star",
        "two yellow squares on a black table, seen from above",
    )
    requests = [request_for(prompt, seed=seed, width=171, height=33) for seed, prompt in enumerate(prompts)]
    requests.append(requests[0].evolve(seed=9, batch_size=2))
    outcome = engine.generate(together(*requests), threading.Event(), lambda *step: None)
    assert isinstance(outcome, Generated)
    assert (outcome.provenance.call_pictures, [image.seed for image in outcome.images]) == (5, [0, 1, 2, 9, 10])
    alone = [run(engine, "tiny", request) for request in requests]
    pictures = [image for each in alone if isinstance(each, Generated) for image in each.images]
    for one, other in zip(outcome.images, pictures, strict=True):
        levels = np.abs(np.frombuffer(one.rgb, np.uint8).astype(int) - np.frombuffer(other.rgb, np.uint8))
        assert levels.max() <= 1
        assert levels.mean() < 0.01
    assert all(each.provenance.call_pictures == 1 for each in alone if isinstance(each, Generated))


def test_a_step_of_a_call_is_one_of_each_picture_and_a_stop_ends_them_all(engine: Engine) -> None:
    loaded(engine, fake_catalog(fake={"max_batch": 4}), "fake")
    steps, stop = list[tuple[int, int]](), threading.Event()
    command = together(request_for(steps=3), request_for("b", steps=3, batch_size=2), model="fake")
    outcome = engine.generate(command, stop, lambda step, total, _=b"": steps.append((step, total)))
    assert isinstance(outcome, Generated)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    stop.set()
    assert isinstance(engine.generate(command, stop, lambda *step: None), Stopped)


def test_a_shared_call_that_is_out_of_memory_is_reported_at_once_and_evicts_nothing(engine: Engine) -> None:
    loaded(engine, fake_catalog(fake={"max_batch": 4, "most_pictures": 1}), "fake")
    command = together(request_for(), request_for("b"), model="fake")
    failed = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.made_room) == (FailureCode.OUT_OF_MEMORY, False)
    assert isinstance(run(engine, "fake", request_for()), Generated)


def test_the_size_is_exact_where_the_model_cannot_render_it(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    outcome = run(engine, "tiny", request_for(width=171, height=33))
    assert isinstance(outcome, Generated)
    assert len(outcome.images[0].rgb) == 171 * 33 * 3


def test_a_stopped_picture_does_not_colour_the_next_one(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    before = run(engine, "tiny", request_for())
    stop = threading.Event()
    stopped = engine.generate(
        Generate(model="tiny", request=request_for("a star", steps=200)), stop, lambda step, total, _=b"": stop.set()
    )
    assert isinstance(stopped, Stopped)
    assert run(engine, "tiny", request_for()) == before or _same_images(run(engine, "tiny", request_for()), before)


def test_image_to_image_stops_within_a_step_and_the_next_picture_is_that_of_a_fresh_engine(
    engine: Engine, shipped: Catalog
) -> None:
    loaded(engine, shipped, "tiny")
    stop, steps = threading.Event(), list[int]()

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        steps.append(step)
        if step == 2:
            stop.set()

    request = request_for("a star", steps=100, strength=0.8)
    assert isinstance(engine.generate(from_blue(request), stop, on_step), Stopped)
    assert len(steps) <= 4  # the one under way, and one more while the word crosses the pipe
    after = engine.generate(from_blue(request_for(strength=0.8)), threading.Event(), lambda *step: None)
    fresh = loaded(LocalEngine(CPU), shipped, "tiny")
    alone = fresh.generate(from_blue(request_for(strength=0.8)), threading.Event(), lambda *step: None)
    fresh.close()
    assert _same_images(after, alone)


def from_blue(request: GenerationRequest) -> Generate:
    Image.new("RGB", (200, 100), (45, 90, 215)).save(file := io.BytesIO(), "PNG")
    return Generate(model="tiny", request=request, init_image=file.getvalue())


def test_each_model_works_within_its_own_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("imagegen.gpu.engine.limit", lambda device, fraction: shares.append(fraction))
    engine = LocalEngine(CPU)
    chosen = fake_catalog(a={"gpu_memory_fraction": 0.5}, b={"gpu_memory_fraction": 0.8})
    for model in "ab":
        loaded(engine, chosen, model)
    for model in "ab":
        assert isinstance(run(engine, model, request_for()), Generated)
    assert shares == [0.5, 0.8] * 2


@pytest.mark.parametrize(("most", "working"), [(150, 50), (0, 0)])
def test_the_peak_of_a_call_excludes_earlier_memory(monkeypatch: pytest.MonkeyPatch, most: int, working: int) -> None:
    monkeypatch.setattr("imagegen.gpu.engine.measure", lambda device: DeviceMemory(allocated=100))
    monkeypatch.setattr("imagegen.gpu.engine.peak", lambda device: most)
    outcome = run(loaded(LocalEngine(CPU), fake_catalog(), "fake"), "fake", request_for())
    assert isinstance(outcome, Generated)
    assert outcome.working_bytes == working


@pytest.mark.parametrize("strength", [None, 0.9])
def test_previews_show_the_picture_long_before_it_is_done_and_change_nothing(
    engine: Engine, shipped: Catalog, strength: float | None
) -> None:
    loaded(engine, shipped, "tiny")
    previews: dict[int, bytes] = {}

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        if preview:
            previews[step] = preview

    request = request_for(width=128, height=128, steps=10, strength=strength)
    command = from_blue(request) if strength else Generate(model="tiny", request=request)
    shown = engine.generate(command.model_copy(update={"previews": 1}), threading.Event(), on_step)
    assert isinstance(shown, Generated)
    assert _same_images(shown, engine.generate(command, threading.Event(), lambda *step: None))
    steps = 10 if strength is None else 9
    assert list(previews) == [round(steps / 2)]
    (jpeg,) = previews.values()
    assert len(jpeg) < 32_768
    end = np.frombuffer(shown.images[0].rgb, np.uint8).reshape(128, 128, 3).astype(float)
    preview = np.asarray(Image.open(io.BytesIO(jpeg)).resize((128, 128))).astype(float)
    noise = np.random.default_rng(1).uniform(0, 255, end.shape)
    flat = np.broadcast_to(end.mean((0, 1)), end.shape)
    assert distance(preview, end) < 0.15 * distance(noise, end)
    assert distance(preview, end) < 0.3 * distance(flat, end)


def distance(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> float:
    return float(np.sqrt(((one - other) ** 2).mean()))


def _same_images(a: object, b: object) -> bool:
    return isinstance(a, Generated) and isinstance(b, Generated) and a.images == b.images


def test_image_to_image_starts_from_the_picture(engine: Engine, shipped: Catalog) -> None:
    loaded(engine, shipped, "tiny")
    file = io.BytesIO()
    Image.new("RGB", (200, 100), (45, 90, 215)).save(file, "PNG")
    weak = run(engine, "tiny", request_for(width=128, height=128, steps=8, strength=0.3), init_image=file.getvalue())
    assert isinstance(weak, Generated)
    red, _, blue = mean_colour(weak.images[0].rgb, 128, (0, 0, 128, 128))
    assert blue > 150 > red
    steps: list[int] = []
    command = Generate(model="tiny", request=request_for(steps=10, strength=0.5), init_image=file.getvalue())
    engine.generate(command, threading.Event(), lambda step, total, _=b"": steps.append(total))
    assert steps == [5] * 5
