"""Equal parts of two models are in memory once, a swap moves only the others, and the pictures stay the same."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen.catalog.loading import parse_catalog
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load, Loaded, Unload, Unloaded
from imagegen.loaders import SPECS
from imagegen.loaders.host_copy import HostCopy
from imagegen.loaders.parts import Part, Parts, Source
from tests.conftest import load_command, request_for
from tests.pipelines import build
from tests.pretend_cuda import Cuda, pretended

TRANSFORMER = Path("transformer/diffusion_pytorch_model.safetensors")
FLUX = {"name": "A", "type": "flux", "base_size": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines that differ in their transformer alone."""
    root = tmp_path_factory.mktemp("models")
    build("flux-dev", root / "one")
    shutil.copytree(root / "one", root / "two")
    weights = load_file(root / "two" / TRANSFORMER)
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, root / "two" / TRANSFORMER, {"format": "pt"})
    return root


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


def command(folders: Path, model: str, **fields: Any) -> Load:
    entry = FLUX | {"local_path": model} | fields
    return load_command(parse_catalog(json.dumps({"models": {model: entry}}), SPECS), model, folders)


def load(engine: LocalEngine, folders: Path, model: str, **fields: Any) -> Loaded:
    answer = engine.load(command(folders, model, **fields))
    assert isinstance(answer, Loaded), answer
    return answer


def draw(engine: LocalEngine, model: str) -> bytes:
    answer = engine.generate(Generate(model=model, request=request_for()), threading.Event(), lambda *step: None)
    assert isinstance(answer, Generated), answer
    return answer.images[0].rgb


def switch(engine: LocalEngine, folders: Path, old: str, new: str, **fields: Any) -> Loaded:
    assert isinstance(engine.unload(Unload(model=old, switching=True)), Unloaded)
    return load(engine, folders, new, **fields)


def size(folders: Path, model: str) -> int:
    """The bytes of its transformer."""
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(folders / model / TRANSFORMER).values())


def test_a_swap_moves_only_different_parts_and_draws_the_same(engine: LocalEngine, folders: Path) -> None:
    first = load(engine, folders, "one")
    assert first.moved_bytes == first.weight_bytes
    one = draw(engine, "one")
    second = switch(engine, folders, "one", "two")
    assert second.weight_bytes == first.weight_bytes
    assert second.moved_bytes == size(folders, "two")
    two = draw(engine, "two")
    assert switch(engine, folders, "two", "one").moved_bytes == size(folders, "one")
    assert draw(engine, "one") == one != two
    engine.unload(Unload(model="one"))
    assert load(engine, folders, "two").moved_bytes == first.weight_bytes  # nobody held anything
    assert draw(engine, "two") == two


def test_two_that_stay_share_one_and_the_other_lives_on(engine: LocalEngine, folders: Path) -> None:
    load(engine, folders, "one")
    one = draw(engine, "one")
    assert load(engine, folders, "two").moved_bytes == size(folders, "two")
    engine.unload(Unload(model="two"))
    assert draw(engine, "one") == one


def test_two_alternating_models_draw_the_same_as_alone_and_name_shared_parts_equally(
    engine: LocalEngine, folders: Path
) -> None:
    alone = {}
    for model in ("one", "two"):
        load(engine, folders, model)
        alone[model] = draw(engine, model)
        engine.unload(Unload(model=model))
    one, two = load(engine, folders, "one"), load(engine, folders, "two")
    assert one.shared == two.shared
    assert sum(one.shared.values()) == one.weight_bytes - size(folders, "one")
    assert [draw(engine, model) for model in ("one", "two", "one", "two")] == [alone["one"], alone["two"]] * 2
    engine.unload(Unload(model="one"))
    assert draw(engine, "two") == alone["two"]
    assert (again := load(engine, folders, "one")).moved_bytes == size(folders, "one")
    assert again.shared == two.shared


@pytest.mark.parametrize(
    "fields",
    [{"torch_dtype": "bfloat16"}, {"enable_vae_tiling": True}],
    ids=["another dtype", "another option"],
)
def test_other_treatment_is_another_part(engine: LocalEngine, folders: Path, fields: dict[str, Any]) -> None:
    load(engine, folders, "one")
    loaded = switch(engine, folders, "one", "two", **fields)
    assert loaded.moved_bytes == loaded.weight_bytes


def test_other_content_of_the_same_shape_is_another_part(engine: LocalEngine, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "two", tmp_path / "two")
    file = tmp_path / "two" / "text_encoder_2" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    load(engine, folders, "one")
    changed = switch(engine, tmp_path, "one", "two")
    whole = switch(engine, folders, "two", "two")
    assert size(folders, "two") < changed.moved_bytes < changed.weight_bytes
    assert whole.moved_bytes == changed.moved_bytes


def test_weights_that_were_replaced_after_their_load_are_read_again(
    engine: LocalEngine, folders: Path, tmp_path: Path
) -> None:
    for model in ("one", "two"):
        shutil.copytree(folders / model, tmp_path / model)
    load(engine, tmp_path, "one")
    for model in ("one", "two"):
        file = tmp_path / model / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    loaded = switch(engine, tmp_path, "one", "two")
    assert loaded.moved_bytes > size(folders, "two")


def test_held_parts_are_released_after_a_failed_load(engine: LocalEngine, folders: Path) -> None:
    load(engine, folders, "one")
    one = draw(engine, "one")
    engine.unload(Unload(model="one", switching=True))
    assert not isinstance(engine.load(command(folders, "missing")), Loaded)
    assert (again := load(engine, folders, "one")).moved_bytes == again.weight_bytes
    assert draw(engine, "one") == one


# -- on a pretended card ---------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pretended() as card:
        yield card


def linear(parts: Parts, device: str = "cuda") -> Part:
    """A part that one model on the device uses."""
    module = torch.nn.Linear(8, 8).to(device)
    part = Part(module, Source(("torch", "Linear"), "{}", (), (), ()), HostCopy([module], device))
    parts.add(part)
    part.enter()
    return part


def test_a_part_is_copied_once_for_all_its_users_and_moves_to_the_host_after_the_last(cuda: Cuda) -> None:
    part = linear(Parts())
    part.keep()
    part.leave()
    assert not part.module.weight.is_cuda
    assert [part.enter(), part.enter()] == [part.bytes, 0] == [8 * 9 * 4, 0]
    part.leave()
    assert part.module.weight.is_cuda
    part.leave()
    assert not part.module.weight.is_cuda


def test_a_part_that_no_model_keeps_warm_is_not_copied_to_the_host(cuda: Cuda) -> None:
    part = linear(Parts())
    part.leave()
    assert (part.host_bytes, part.missing_bytes, cuda.pinned.bytes) == (0, part.bytes, 0)


def test_an_offloaded_model_shares_nothing_and_reports_no_parts(cuda: Cuda, folders: Path) -> None:
    engine = LocalEngine(EngineOptions(device="cuda"))
    assert load(engine, folders, "one", cpu_offload="model").shared == {}
    engine.close()


def test_a_part_that_is_held_stays_until_the_next_model_has_chosen(cuda: Cuda) -> None:
    parts = Parts()
    part = linear(parts)
    part.keep()
    parts.hold([part])
    part.leave()
    assert part.module.weight.is_cuda
    parts.let_go()
    assert not part.module.weight.is_cuda


def test_a_part_whose_return_to_the_device_failed_can_be_used_again(cuda: Cuda) -> None:
    part = linear(Parts())
    part.keep()
    part.leave()
    cuda.fail("out_of_memory", "to")
    with pytest.raises(torch.OutOfMemoryError):
        part.enter()
    assert part.enter() == part.bytes
    part.leave()
    assert not part.module.weight.is_cuda


@pytest.mark.parametrize(("blob", "one_name"), [("a" * 64, True), ("model-0001", False)])
def test_a_file_of_the_hubs_cache_has_one_name_wherever_it_lies_and_another_file_has_its_own(
    tmp_path: Path, blob: str, one_name: bool
) -> None:
    sources = []
    for repo in ("one", "two"):
        (tmp_path / repo / "blobs").mkdir(parents=True)
        (tmp_path / repo / "vae").mkdir()
        (tmp_path / repo / "blobs" / blob).write_bytes(b"weights")
        (tmp_path / repo / "vae" / "model.safetensors").symlink_to(tmp_path / repo / "blobs" / blob)
        sources.append(Source.of(tmp_path / repo, "vae", ("diffusers", "AutoencoderKL"), ("auto", "cpu")))
    one, two = sources
    assert one.same(two)
    assert (one.name == two.name) is one_name
    assert one._replace(treatment=("auto", "cuda")).name != one.name
    assert one._replace(config="{}").name != one.name


def test_a_part_without_a_model_is_not_found() -> None:
    parts = Parts()
    source = linear(parts, "cpu").source
    assert source is not None
    assert parts.find(source) is None
