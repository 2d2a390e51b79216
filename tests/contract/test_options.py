"""Memory and speed options, on tiny pipelines: each has its effect, and none outlives its model."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch._dynamo.utils import counters
from torch._inductor.runtime import cache_dir_utils

from imagegen.app import make_engine
from imagegen.catalog.loading import ConfigError, parse_catalog
from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import COMPILER_CACHES, LocalEngine
from imagegen.gpu.protocol import (
    EngineOptions,
    Failed,
    Generate,
    Generated,
    Loaded,
    Measured,
    Stopped,
    Unload,
    Unloaded,
)
from imagegen.loaders import PRODUCT, SPECS, diffusers_model, provenance
from imagegen.loaders.options import quantization_config, rounding
from imagegen.settings import Settings
from tests.conftest import load_command, request_for
from tests.pipelines import build


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with a tiny FLUX and a tiny XL."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("flux-dev", "sdxl"):
        build(kind, folder / kind)
    return folder


def entry(**fields: Any) -> str:
    model = {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64} | fields
    return json.dumps({"models": {"a": model}})


class House:
    """One engine with one model."""

    def __init__(self, models: Path, engine: LocalEngine | None = None, **fields: Any) -> None:
        self.engine = engine or LocalEngine(EngineOptions(device="cpu"))
        self.loaded = self.engine.load(load_command(parse_catalog(entry(**fields), SPECS), "a", models))

    def draw(self, stop_at: int | None = None, **changes: Any) -> bytes:
        stop = threading.Event()
        command = Generate(model="a", request=request_for(**changes))
        outcome = self.engine.generate(command, stop, lambda step, *_: stop.set() if step == stop_at else None)
        if stop_at is not None:
            assert isinstance(outcome, Stopped)
            return b""
        assert isinstance(outcome, Generated), outcome
        return outcome.images[0].rgb


@pytest.mark.parametrize("option", ["enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"])
@pytest.mark.parametrize("model", [{}, {"type": "stable_diffusion", "pipeline_class": "StableDiffusionXLPipeline"}])
def test_an_option_of_memory_changes_no_small_picture_by_much(models: Path, option: str, model: dict[str, Any]) -> None:
    model = model | {"local_path": "sdxl" if model else "flux-dev"}
    plain, saving = House(models, **model).draw(), House(models, **model | {option: True}).draw()
    assert max(abs(a - b) for a, b in zip(plain, saving, strict=True)) <= 2


def test_eight_bit_weights_take_half_the_memory_of_sixteen(models: Path) -> None:
    full, cast = House(models), House(models, layerwise_casting="float8_e4m3fn")
    assert isinstance(full.loaded, Loaded)
    assert isinstance(cast.loaded, Loaded)
    assert cast.loaded.weight_bytes < 0.8 * full.loaded.weight_bytes
    assert cast.draw() != full.draw()
    assert cast.draw() == cast.draw()


def test_an_attention_backend_counts_for_its_model_only(models: Path) -> None:
    before = _AttentionBackendRegistry.get_active_backend()
    plain, chosen = House(models), House(models, attention_backend="_native_math")
    expected = plain.draw()
    assert len(chosen.draw()) == len(expected)
    assert plain.draw() == expected
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_an_attention_backend_that_is_not_installed_is_reported(models: Path) -> None:
    house = House(models, attention_backend="sage")
    failed = house.engine.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *_: None)
    assert isinstance(failed, Failed)
    assert (failed.code, "sage" in failed.message) == (FailureCode.ENGINE_MISSING, True)


@pytest.mark.parametrize("threshold", [0.001, 1])
def test_the_step_cache_keeps_nothing_for_the_next_picture(models: Path, threshold: float) -> None:
    house = House(models, step_cache=threshold)
    first = house.draw(steps=6)
    assert (first != House(models).draw(steps=6)) == (threshold == 1)
    house.draw(steps=6, prompt="another", seed=9)
    house.draw(steps=6, prompt="a third", stop_at=3)
    assert house.draw(steps=6) == first


def test_extrapolated_steps_keep_nothing_for_the_next_picture_either(models: Path) -> None:
    house = House(models, step_cache="taylorseer")
    first = house.draw(steps=9)
    assert first != House(models).draw(steps=9)
    house.draw(steps=9, prompt="a third", stop_at=5)
    assert house.draw(steps=9) == first


@pytest.mark.slow  # with the extra `quantize` installed
@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_rounded_weights_take_less_memory_and_draw_nearly_the_same(models: Path, kind: str) -> None:
    full, rounded = House(models, local_path="builtin:tiny"), House(models, local_path="builtin:tiny", quantize=kind)
    assert isinstance(full.loaded, Loaded)
    assert isinstance(rounded.loaded, Loaded)
    assert rounded.loaded.weight_bytes < 0.55 * full.loaded.weight_bytes
    request: dict[str, Any] = {"prompt": "a cat", "width": 128, "height": 128}
    pairs = list(zip(full.draw(**request), rounded.draw(**request), strict=True))
    assert 0 < sum(abs(a - b) for a, b in pairs) / len(pairs) < 3


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device that multiplies in float8 for the choice and torchao's checks; the CPU runs the model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return "cuda"


@pytest.mark.slow  # with the extra `quantize` installed
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_float8_also_rounds_inputs_of_layers_if_the_device_multiplies_in_float8(
    models: Path, ada: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"local_path": "builtin:tiny", "torch_dtype": dtype}
    request: dict[str, Any] = {"prompt": "a cat", "width": 128, "height": 128}
    full, by_weight = (
        House(models, **fields).draw(**request),
        House(models, **fields, quantize="float8").draw(**request),
    )
    chosen = quantization_config
    monkeypatch.setattr(
        diffusers_model, "quantization_config", lambda spec, part, device, dtype: chosen(spec, part, ada, dtype)
    )
    monkeypatch.setattr(provenance, "rounding", lambda spec, device: rounding(spec, ada))
    house = House(models, **fields, quantize="float8")
    layer = house.engine._models["a"].model._pipeline.transformer.transformer_blocks[0].attn.to_q  # type: ignore[attr-defined]
    assert layer.weight.act_quant_kwargs is not None
    pixels = house.draw(**request)
    for other in (full, by_weight):
        pairs = list(zip(pixels, other, strict=True))
        assert 0 < sum(abs(a - b) for a, b in pairs) / len(pairs) < 4
    outcome = house.engine.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *_: None)
    assert isinstance(outcome, Generated)
    assert outcome.provenance.quantization == "float8_dynamic"


@pytest.mark.slow  # with the extra `quantize` installed
def test_rounded_weights_do_not_stay_warm(models: Path) -> None:
    house = House(models, quantize="int8")
    answer = house.engine.unload(Unload(model="a", keep_warm=True))
    assert isinstance(answer, Unloaded)
    assert not answer.warm


def test_rounding_without_its_library_names_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    failed = House(models, quantize="int8").loaded
    assert isinstance(failed, Failed)
    assert (failed.code, "torchao" in failed.message) == (FailureCode.ENGINE_MISSING, True)


@pytest.mark.usefixtures("quick_compiler")
def test_compiled_code_survives_an_unload_and_draws_the_same(models: Path) -> None:
    pictures, compiled = [House(models).draw()], []
    house = House(models, compile=True)
    for _ in range(2):
        pictures.append(house.draw())
        compiled.append(counters["stats"]["unique_graphs"])
        house.engine.unload(Unload(model="a"))
        house = House(models, compile=True)
    assert len(set(pictures)) == 1
    assert compiled[0] == compiled[1] > 0


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("cache", [0.05, 1, "taylorseer"])
def test_compiled_blocks_and_a_step_cache_draw_what_the_cache_alone_draws(models: Path, cache: float | str) -> None:
    plain, compiled = House(models, step_cache=cache), House(models, step_cache=cache, compile=True)
    for seed in (1, 2):
        assert compiled.draw(steps=9, seed=seed) == plain.draw(steps=9, seed=seed)
    compiled.draw(steps=9, stop_at=4)
    assert compiled.draw(steps=9, seed=3) == plain.draw(steps=9, seed=3)
    graphs = counters["stats"]["unique_graphs"]
    compiled.engine.unload(Unload(model="a"))
    again = House(models, step_cache=cache, compile=True)
    assert again.draw(steps=9, seed=3) == plain.draw(steps=9, seed=3)
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_real_compiler_draws_nearly_the_same_and_keeps_its_code_in_the_configured_folder(
    models: Path, tmp_path: Path, no_compiler_cache: None
) -> None:
    torch._dynamo.reset()
    compiled = House(models, LocalEngine(EngineOptions(device="cpu", compiled_dir=str(tmp_path))), compile=True)
    pairs = zip(House(models).draw(), compiled.draw(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 2
    cached = House(models, step_cache=0.05).draw(), House(models, step_cache=0.05, compile=True).draw()
    assert max(abs(a - b) for a, b in zip(*cached, strict=True)) <= 2
    assert [file for file in (tmp_path / "inductor").rglob("*") if file.suffix == ".so"]


@pytest.fixture
def no_compiler_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the folders from the environment, during and after the test."""
    for variable in COMPILER_CACHES:
        monkeypatch.setenv(variable, "")  # so that what the test sets is undone, too
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("no_compiler_cache")
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_compiled_code_is_kept_in_the_data_directory(tmp_path: Path, isolation: str) -> None:
    engine = make_engine(Settings(data_dir=tmp_path, device="cpu", isolation=isolation), PRODUCT)
    assert isinstance(LocalEngine(engine._options).measure(), Measured)  # type: ignore[attr-defined]
    assert cache_dir_utils.cache_dir() == str(tmp_path / "compiled" / "inductor")
    assert cache_dir_utils.triton_cache_dir(0) == str(tmp_path / "compiled" / "triton")


@pytest.mark.usefixtures("no_compiler_cache")
def test_the_operators_word_for_the_compilers_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert isinstance(LocalEngine(EngineOptions(device="cpu", compiled_dir=str(tmp_path))).measure(), Measured)
    assert cache_dir_utils.cache_dir() == str(tmp_path / "mine")


def test_a_machine_that_cannot_compile_reports_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no compiler")

    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, **how | {"backend": broken}))
    house = House(models, compile=True)
    failed = house.engine.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *_: None)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.ENGINE_MISSING


def test_a_full_device_during_compilation_is_out_of_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, **how | {"backend": full}))
    house = House(models, compile=True)
    failed = house.engine.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *_: None)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY


def test_the_entrys_word_counts_before_the_global_one(models: Path) -> None:
    text = json.dumps({"global": {"enable_vae_tiling": True, "cpu_offload": "model"}} | json.loads(entry()))
    catalog = parse_catalog(text, SPECS)
    spec = SPECS["flux"].model_validate({"name": "A", "type": "flux", "local_path": "a", "cpu_offload": "none"})
    assert spec.chosen("cpu_offload", catalog.settings) == "none"  # type: ignore[attr-defined]
    assert spec.chosen("enable_vae_tiling", catalog.settings) is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(("old", "word"), [(True, "model"), (False, "none")])
def test_the_briefs_word_for_offloading_is_read(old: bool, word: str) -> None:
    text = json.dumps({"global": {"enable_cpu_offload": old}} | json.loads(entry()))
    assert parse_catalog(text, SPECS).settings.cpu_offload == word


CONTRADICTIONS: list[dict[str, Any]] = [
    {"enable_attention_slicing": True, "attention_backend": "native"},
    {"layerwise_casting": "float8_e4m3fn", "cpu_offload": "sequential"},
    {"step_cache": 0.1, "true_cfg_scale": 2},
    {"step_cache": 0.1, "type": "stable_diffusion", "pipeline_class": "StableDiffusionXLPipeline"},
    {"layerwise_casting": "float8_e4m3fn", "type": "gguf", "base_model": "org/base"},
    {"compile": True, "cpu_offload": "model"},
    {"step_cache": 0.1, "type": "nunchaku", "base_model": "org/base", "local_path": "a.safetensors"},
    {"compile": True, "layerwise_casting": "float8_e4m3fn"},
    {"compile": True, "type": "nunchaku", "base_model": "org/base", "local_path": "a.safetensors"},
    {"quantize": "int8", "cpu_offload": "model"},
    {"quantize": "int8", "layerwise_casting": "float8_e4m3fn"},
    {"quantize": "int8", "type": "gguf", "base_model": "org/base"},
    {"quantize": "int4"},
    {"step_cache": "magic"},
    {"cpu_offload": "some"},
    {"attention_backend": "flash_hub"},
]


@pytest.mark.parametrize(
    "fields", [{"quantize": "int8"}, {"layerwise_casting": "float8_e4m3fn"}, {"compile": True}], ids=str
)
def test_options_of_the_transformer_work_with_offloaded_encoders(fields: dict[str, Any]) -> None:
    assert parse_catalog(entry(cpu_offload="encoders", **fields), SPECS)


@pytest.mark.parametrize("fields", CONTRADICTIONS, ids=str)
def test_a_contradiction_is_an_error_of_the_configuration(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_catalog(entry(**fields), SPECS)
