"""The device and host memory of a load, and which models stay warm. On a pretended card."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.loading import parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.task import Lora
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load, Loaded, Stopped, Unload, Unloaded
from imagegen.loaders import SPECS, diffusers_model, offloading
from imagegen.loaders.base import Placement
from imagegen.loaders.flux import FluxModelLoader, FluxSpec
from imagegen.loaders.host_copy import tensors_of
from imagegen.loaders.parts import Parts
from tests.conftest import load_command, request_for
from tests.contract.test_lora import write_lora
from tests.pipelines import build
from tests.pretend_cuda import Card, Cuda, pretended

FLUX = {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64, "torch_dtype": "float32"}

#: What one piece of pinned memory is larger than the tensors in it.
PADDING = 1.2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build("flux-dev", folder / "flux-dev")
    return folder


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pretended(Card()) as card:
        yield card


@pytest.fixture
def engine(cuda: Cuda) -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cuda"))
    yield made
    made.close()


def command(models: Path, host_cache_gb: float = 0, model: str = "a", **fields: Any) -> Load:
    settings = {"host_cache_gb": host_cache_gb}
    catalog = {"global": settings, "models": {"a": FLUX | fields, "b": FLUX | fields}}
    return load_command(parse_catalog(json.dumps(catalog), SPECS), model, models)


def load(engine: LocalEngine, models: Path, host_cache_gb: float = 0, model: str = "a", **fields: Any) -> Loaded:
    answer = engine.load(command(models, host_cache_gb, model, **fields))
    assert isinstance(answer, Loaded), answer
    return answer


def unload(engine: LocalEngine, model: str = "a", **how: Any) -> Unloaded:
    answer = engine.unload(Unload(model=model, **how))
    assert isinstance(answer, Unloaded), answer
    return answer


def draw(
    engine: LocalEngine, model: str = "a", *, image: bytes | None = None, lora: Path | None = None, **changes: Any
) -> bytes:
    loras = (Lora(path=lora.name, scale=1),) if lora else ()
    request = request_for(loras=loras, **changes)
    files = (str(lora),) if lora else ()
    command = Generate(model=model, request=request, init_image=image, lora_files=files)
    answer = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(answer, Generated), answer
    return answer.images[0].rgb


def stop(engine: LocalEngine, **inputs: Any) -> None:
    """Begin a picture and end it after its first step."""
    flag = threading.Event()
    command = Generate(model="a", request=request_for(prompt="another", strength=0.6), **inputs)
    assert isinstance(engine.generate(command, flag, lambda step, total, _=b"": flag.set()), Stopped)


def png() -> bytes:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def part_bytes(models: Path, part: str) -> int:
    """In float32."""
    files = (models / "flux-dev" / part).glob("*.safetensors")
    return sum(4 * tensor.numel() for file in files for tensor in load_file(file).values())


# -- the warm tier -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_cache_gb", [0, 1e-6, 100])
def test_a_load_pins_nothing_whatever_the_host_may_keep(
    engine: LocalEngine, cuda: Cuda, models: Path, host_cache_gb: float
) -> None:
    loaded = load(engine, models, host_cache_gb)
    assert (loaded.host_bytes, cuda.pinned.bytes) == (0, 0)
    assert loaded.device_bytes == loaded.weight_bytes


def test_a_model_is_pinned_when_it_is_to_stay_warm_and_its_copy_counts_when_it_is_back(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    first = load(engine, models)
    expected = draw(engine)
    assert unload(engine, keep_warm=True).warm
    assert first.weight_bytes <= cuda.pinned.bytes < PADDING * first.weight_bytes
    for _ in range(2):
        back = load(engine, models)
        assert (back.warm, back.moved_bytes, back.host_bytes) == (True, first.weight_bytes, first.weight_bytes)
        assert draw(engine) == expected
        pinned = cuda.pinned.bytes
        assert unload(engine, keep_warm=True).warm
        assert cuda.pinned.bytes == pinned  # nothing was copied to leave
    unload(engine)
    assert cuda.pinned.bytes == 0


def test_a_model_does_not_stay_warm_where_the_machine_has_no_room(
    engine: LocalEngine, cuda: Cuda, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(engine, models)
    monkeypatch.setattr(diffusers_model, "room", lambda: loaded.weight_bytes - 1)
    assert not unload(engine, keep_warm=True).warm
    assert cuda.pinned.bytes == 0
    load(engine, models)
    monkeypatch.setattr(diffusers_model, "room", lambda: loaded.weight_bytes)
    assert unload(engine, keep_warm=True).warm


def test_another_share_of_the_host_makes_no_other_entry(engine: LocalEngine, models: Path) -> None:
    load(engine, models, 1)
    unload(engine, keep_warm=True)
    assert load(engine, models, 2).warm


def test_two_warm_models_share_their_copies_and_a_swap_moves_only_different_parts(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    first, transformer = load(engine, models, model="a"), part_bytes(models, "transformer")
    expected = draw(engine, "a")
    for old, new in (("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")):
        assert unload(engine, old, keep_warm=True, switching=True).warm
        assert load(engine, models, model=new).moved_bytes == transformer
        assert draw(engine, new) == expected
    assert cuda.pinned.bytes < PADDING * (first.weight_bytes + transformer)
    unload(engine, "b")  # the warm one
    assert draw(engine, "a") == expected
    assert unload(engine, "a", keep_warm=True).warm
    assert cuda.device.bytes < part_bytes(models, "text_encoder_2")  # embeddings
    assert load(engine, models, model="a").moved_bytes == first.weight_bytes
    assert draw(engine, "a") == expected


def test_a_warm_model_that_finds_no_room_leaves_none_of_its_shared_parts_on_the_device(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    for model in ("a", "b"):
        load(engine, models, model=model)
    assert unload(engine, "b", keep_warm=True).warm
    cuda.fail("out_of_memory", "to")
    assert not load(engine, models, model="b").warm  # it was read from disk instead
    for model in ("b", "a"):
        assert unload(engine, model, keep_warm=True).warm
    assert cuda.device.bytes == 0


# -- what the device must hold -----------------------------------------------------------------------------------------


PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")


@pytest.mark.parametrize(
    ("offload", "staying"), [("none", PARTS), ("model", ()), ("encoders", ("transformer", "vae"))], ids=str
)
def test_an_offloaded_model_needs_its_fixed_parts_and_the_largest_offloaded_part(
    engine: LocalEngine, models: Path, offload: str, staying: tuple[str, ...]
) -> None:
    sizes = {part: part_bytes(models, part) for part in PARTS}
    turns = [size for part, size in sizes.items() if part not in staying]
    least = sum(sizes[part] for part in staying) + max(turns, default=0)
    asked = command(models, cpu_offload=offload)
    settings = GlobalSettings.model_validate(asked.settings)
    placement = Placement("cuda", settings, Folders(models, models), Parts())
    assert FluxModelLoader().least_bytes(FluxSpec.model_validate(asked.spec), placement) == least
    loaded = load(engine, models, cpu_offload=offload)
    assert least <= loaded.device_bytes < least + 1000  # buffers that no file has
    assert sum(turns) <= loaded.host_bytes < sum(turns) + 1000


@pytest.mark.parametrize(("offload", "layers"), [("sequential", 1), ("group", 2)])
def test_where_single_layers_are_offloaded_the_largest_count(
    engine: LocalEngine, models: Path, offload: str, layers: int
) -> None:
    loaded = load(engine, models, cpu_offload=offload)
    pipeline: Any = engine._models["a"].model._pipeline  # type: ignore[attr-defined]
    modules = [module for module in pipeline.components.values() if hasattr(module, "modules")]
    leaves = [leaf for module in modules for leaf in module.modules() if not list(leaf.children())]
    sizes = sorted((sum(4 * tensor.numel() for tensor in leaf.parameters()) for leaf in leaves), reverse=True)
    assert sum(sizes[:layers]) <= loaded.device_bytes < sum(sizes[:layers]) + 1000
    assert loaded.host_bytes == loaded.weight_bytes


def test_a_model_in_eight_bits_needs_the_bytes_of_its_eight_bit_weights(engine: LocalEngine, models: Path) -> None:
    full = load(engine, models, torch_dtype="bfloat16")
    cast = load(engine, models, model="b", torch_dtype="bfloat16", layerwise_casting="float8_e4m3fn")
    assert cast.device_bytes == cast.weight_bytes < 0.8 * full.device_bytes


# -- whole parts that take turns ---------------------------------------------------------------------------------------

EMBEDDED: dict[str, Any] = {"local_path": "builtin:tiny"}


def parts_on_the_device(engine: LocalEngine, cuda: Cuda) -> set[str]:
    pipeline: Any = engine._models["a"].model._pipeline  # type: ignore[attr-defined]
    modules = {name: module for name, module in pipeline.components.items() if hasattr(module, "parameters")}
    return {name for name, module in modules.items() if any(tensor in cuda.device for tensor in tensors_of([module]))}


def places(engine: LocalEngine, offload: str) -> list[int]:
    """The places of the offloaded weights."""
    pipeline: Any = engine._models["a"].model._pipeline  # type: ignore[attr-defined]
    modules = {name: module for name, module in pipeline.components.items() if hasattr(module, "parameters")}
    names = offloading.offloaded_parts(modules, offload)  # type: ignore[arg-type]
    return [tensor.data_ptr() for tensor in tensors_of([modules[name] for name in names])]


def watch(engine: LocalEngine, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The parts on the device each time a part begins to run."""
    seen: list[set[str]] = []
    begin = offloading.Turns.begin

    def begin_and_look(turns: offloading.Turns, name: str) -> bool:
        came = begin(turns, name)
        if came or not seen:
            seen.append(parts_on_the_device(engine, cuda))
        return came

    monkeypatch.setattr(offloading.Turns, "begin", begin_and_look)
    return seen


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("loras") / "style.safetensors")


def pictures(engine: LocalEngine, lora: Path) -> list[bytes]:
    """Pictures from a prompt, from a picture, with an adapter, and from the same prompt again."""
    return [draw(engine), draw(engine, image=png(), strength=0.6), draw(engine, lora=lora), draw(engine)]


@pytest.fixture(scope="module")
def undisturbed(models: Path, lora: Path) -> list[bytes]:
    """The pictures of the embedded model with all weights on the device."""
    with pretended():
        engine = LocalEngine(EngineOptions(device="cuda"))
        load(engine, models, **EMBEDDED)
        made = pictures(engine, lora)
        engine.close()
    assert made[0] == made[3] != made[2]
    return made


@pytest.mark.parametrize(
    ("offload", "room"), [("model", 0), ("model", 2**40), ("encoders", 2**40)], ids=["not pinned", "model", "encoders"]
)
def test_offloading_draws_the_same_pictures_and_copies_nothing_back(
    undisturbed: list[bytes],
    engine: LocalEngine,
    cuda: Cuda,
    models: Path,
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    offload: str,
    room: int,
) -> None:
    monkeypatch.setattr(offloading, "room", lambda: room)
    loaded = load(engine, models, cpu_offload=offload, **EMBEDDED)
    assert (cuda.pinned.bytes >= loaded.host_bytes) is bool(room)
    before = places(engine, offload)
    assert pictures(engine, lora) == undisturbed
    assert places(engine, offload) == before


def test_one_offloaded_part_is_on_the_device_at_a_time_and_none_after_the_picture(
    engine: LocalEngine, cuda: Cuda, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(engine, models, cpu_offload="model")
    assert parts_on_the_device(engine, cuda) == set()
    seen = watch(engine, cuda, monkeypatch)
    draw(engine)
    assert seen == [{"text_encoder"}, {"text_encoder_2"}, {"transformer"}, {"vae"}]
    seen.clear()
    draw(engine, image=png(), strength=0.6)
    assert [len(parts) for parts in seen] == [1] * 5
    assert seen[-2:] == [{"transformer"}, {"vae"}]
    assert parts_on_the_device(engine, cuda) == set()


def test_encoders_leave_once_the_prompt_is_encoded(
    engine: LocalEngine, cuda: Cuda, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(engine, models, cpu_offload="encoders")
    seen = watch(engine, cuda, monkeypatch)
    steps: list[set[str]] = []
    command = Generate(model="a", request=request_for())
    answer = engine.generate(
        command, threading.Event(), lambda step, total, _=b"": steps.append(parts_on_the_device(engine, cuda))
    )
    assert isinstance(answer, Generated)
    assert seen == [{"text_encoder", "transformer", "vae"}, {"text_encoder_2", "transformer", "vae"}]
    assert steps == [{"transformer", "vae"}] * 4


@pytest.mark.parametrize("inputs", [{}, {"init_image": png()}], ids=["from words", "from a picture"])
@pytest.mark.parametrize(("offload", "stays"), [("model", set()), ("encoders", {"transformer", "vae"})])
def test_a_picture_that_is_stopped_leaves_nothing_that_is_offloaded_on_the_device(
    engine: LocalEngine, cuda: Cuda, models: Path, offload: str, stays: set[str], inputs: dict[str, bytes]
) -> None:
    load(engine, models, cpu_offload=offload)
    expected = draw(engine)
    stop(engine, **inputs)
    assert parts_on_the_device(engine, cuda) == stays
    assert draw(engine) == expected


def test_a_full_device_ends_one_picture_of_an_offloaded_model_and_not_the_next(
    engine: LocalEngine, cuda: Cuda, models: Path
) -> None:
    load(engine, models, cpu_offload="model")
    expected = draw(engine)
    cuda.fail("out_of_memory", "linear", times=2)
    failed = engine.generate(Generate(model="a", request=request_for(prompt="b")), threading.Event(), lambda *_: None)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY
    assert parts_on_the_device(engine, cuda) == set()
    assert draw(engine) == expected


@pytest.mark.parametrize(
    ("offload", "moved"), [("model", ()), ("encoders", ("transformer", "vae"))], ids=["model", "encoders"]
)
def test_an_offloaded_model_that_stays_warm_takes_no_more_than_before(
    engine: LocalEngine, cuda: Cuda, models: Path, offload: str, moved: tuple[str, ...]
) -> None:
    first = load(engine, models, cpu_offload=offload)
    expected, before = draw(engine), cuda.pinned.bytes
    assert unload(engine, keep_warm=True).warm
    assert parts_on_the_device_of_warm(engine, cuda) == 0
    back = load(engine, models, cpu_offload=offload)
    assert (back.warm, back.moved_bytes) == (True, sum(part_bytes(models, part) for part in moved))
    assert (back.host_bytes == first.host_bytes) is (cuda.pinned.bytes == before) is (not moved)
    assert draw(engine) == expected
    unload(engine)
    assert cuda.pinned.bytes == 0


def parts_on_the_device_of_warm(engine: LocalEngine, cuda: Cuda) -> int:
    pipeline: Any = engine._warm["a"].model._pipeline  # type: ignore[attr-defined]
    modules = [module for module in pipeline.components.values() if hasattr(module, "parameters")]
    return sum(tensor in cuda.device for tensor in tensors_of(modules))


def test_encoders_are_offloaded_beside_a_transformer_in_eight_bits(engine: LocalEngine, models: Path) -> None:
    fields: dict[str, Any] = {"torch_dtype": "bfloat16", "layerwise_casting": "float8_e4m3fn"}
    cast = load(engine, models, **fields)
    expected = draw(engine)
    unload(engine)
    loaded = load(engine, models, cpu_offload="encoders", **fields)
    assert loaded.weight_bytes == cast.weight_bytes > loaded.device_bytes
    assert draw(engine) == expected


@pytest.mark.slow  # with the extra `quantize` installed
@pytest.mark.parametrize("kind", ["int8", "float8"])
@pytest.mark.parametrize("offload", ["none", "encoders"])
def test_weights_are_rounded_on_the_device(
    engine: LocalEngine, cuda: Cuda, models: Path, kind: str, offload: str
) -> None:
    fields = EMBEDDED | {"torch_dtype": "bfloat16"}
    full = load(engine, models, **fields)
    unload(engine)
    rounded = load(engine, models, quantize=kind, cpu_offload=offload, **fields)
    assert cuda.calls[{"int8": "quantize_affine", "float8": "choose_scale_float8"}[kind]] > 10
    assert rounded.weight_bytes < 0.75 * full.weight_bytes
    expected = draw(engine)
    assert draw(engine) == expected
    assert not unload(engine, keep_warm=True).warm
    assert cuda.device.bytes == 0
