"""A LoRA changes one request and no later one, with real weights."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen.builtin import default_config
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import load_catalog, parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.task import Lora
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load, Loaded
from imagegen.loaders import SPECS
from tests.conftest import load_command, request_for
from tests.pipelines import build
from tests.pretend_cuda import pretended

RANK = 2
CAST = "layerwise_casting: float8_e4m3fn"


@pytest.fixture
def engine(shipped: Catalog) -> Iterator[LocalEngine]:
    engine = LocalEngine(EngineOptions(device="cpu"))
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
    yield engine
    engine.close()


def write_lora(path: Path, width: int = 160, seed: int = 0) -> Path:
    """A random adapter for the attention of the embedded model's first block, in diffusers' key names."""
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    for part in ("to_q", "to_k", "to_v"):
        key = f"transformer.transformer_blocks.0.attn.{part}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, width, generator=noise)
        tensors[f"{key}.lora_B.weight"] = torch.randn(width, RANK, generator=noise)
    save_file(tensors, path)
    return path


@contextmanager
def engine_with(folder: Path, option: str) -> Iterator[LocalEngine]:
    """The embedded model with one more line in its entry."""
    text = default_config().read_text().replace("base_size: 128", f"base_size: 128\n    {option}")
    engine = LocalEngine(EngineOptions(device="cpu"))
    assert isinstance(engine.load(Load.entry(parse_catalog(text, SPECS), "tiny", Folders(folder, folder))), Loaded)
    yield engine
    engine.close()


def draw(engine: LocalEngine, *added: tuple[float, Path]) -> Generated | Failed:
    loras = tuple(Lora(path=file.name, scale=scale) for scale, file in added)
    files = [file for _, file in added]
    command = Generate(model="tiny", request=request_for(loras=loras), lora_files=tuple(map(str, files)))
    outcome = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(outcome, Generated | Failed)
    return outcome


def pixels(outcome: Generated | Failed) -> bytes:
    assert isinstance(outcome, Generated)
    return outcome.images[0].rgb


def test_a_lora_changes_its_own_picture_and_no_later_one(engine: LocalEngine, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    plain = pixels(draw(engine))
    assert len({plain, pixels(draw(engine, (1, file))), pixels(draw(engine, (0.5, file)))}) == 3
    assert pixels(draw(engine)) == plain
    receipts = [
        outcome.provenance for outcome in (draw(engine), draw(engine, (1, file))) if isinstance(outcome, Generated)
    ]
    assert [len(made_by.loras) for made_by in receipts] == [0, 1]
    assert ["peft" in made_by.versions for made_by in receipts] == [False, True]


def test_several_loras_count_together(engine: LocalEngine, tmp_path: Path) -> None:
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    plain = pixels(draw(engine))
    both = pixels(draw(engine, (1, one), (1, two)))
    assert len({plain, both, pixels(draw(engine, (1, one))), pixels(draw(engine, (1, two)))}) == 4
    assert pixels(draw(engine, (1, one), (0, two))) == pixels(draw(engine, (1, one)))
    assert pixels(draw(engine)) == plain


def test_an_entrys_own_lora_stays_when_a_requests_lora_is_added(tmp_path: Path) -> None:
    own = write_lora(tmp_path / "own.safetensors", seed=1)
    more = write_lora(tmp_path / "more.safetensors", seed=2)
    with engine_with(tmp_path, "loras: [{path: own.safetensors}]") as engine:
        with_own = pixels(draw(engine))
        with_both = pixels(draw(engine, (1, more)))
        assert with_own != with_both
        assert pixels(draw(engine)) == with_own
    engine = LocalEngine(EngineOptions(device="cpu"))
    assert isinstance(
        engine.load(Load.entry(load_catalog(default_config(), SPECS), "tiny", Folders(tmp_path, tmp_path))), Loaded
    )
    assert pixels(draw(engine, (1, own))) == with_own
    assert pixels(draw(engine, (1, own), (1, more))) == with_both
    engine.close()


# -- files that do not fit ---------------------------------------------------------------------------------------------


def layer(name: str, down: str, up: str, width: int = 160) -> dict[str, torch.Tensor]:
    """One layer of a LoRA for a square matrix of the embedded model."""
    noise = torch.Generator().manual_seed(0)
    return {
        f"{name}.{down}.weight": torch.randn(RANK, width, generator=noise),
        f"{name}.{up}.weight": torch.randn(width, RANK, generator=noise),
    }


BLOCK = "transformer.transformer_blocks.0.attn.to_q"
FITS = layer(BLOCK, "lora_A", "lora_B")
HADA = {f"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_{it}": torch.ones(2, 2) for it in "ab"}
LOKR = {"lora_unet_down_blocks_0.lokr_w1": torch.ones(2, 2), "lora_unet_down_blocks_0.lokr_w2": torch.ones(2, 2)}

#: What a file contains that is refused, and the true cause.
REFUSED: dict[str, tuple[dict[str, torch.Tensor] | bytes, str]] = {
    "other width": (layer(BLOCK, "lora_A", "lora_B", 96), f"for a model of another width: the shape of '{BLOCK}'"),
    "other keys": ({"unrelated.weight": torch.zeros(2, 2)}, "bad.safetensors has no layers of a LoRA."),
    "Stable Diffusion": (
        layer("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_down", "lora_up"),
        "for another model: FluxPipeline has no such layers as 'lora_unet_down_blocks_0_attentions_0_proj_in'",
    ),
    "Stable Diffusion, by diffusers": (
        layer("unet.down_blocks.0.attentions.0.proj_in", "lora_A", "lora_B"),
        "for another model: FluxPipeline has no such layers as 'unet.down_blocks.0.attentions.0.proj_in'",
    ),
    "LoHa": (HADA, "bad.safetensors is a LoHa, which diffusers does not read."),
    "LoKr": (LOKR, "bad.safetensors is a LoKr, which diffusers does not read for FluxPipeline."),
    "OFT": ({"transformer.x.oft_blocks": torch.ones(2, 2, 2)}, "is an OFT adapter, which diffusers does not read."),
    "textual inversion": ({"emb_params": torch.ones(4, 768)}, "is a textual inversion (an embedding of words)"),
    "textual inversion of diffusers": ({"<cat>": torch.ones(768)}, "is a textual inversion (an embedding of words)"),
    "textual inversion of XL": (
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
        "is a textual inversion (an embedding of words)",
    ),
    "scalar": ({f"{BLOCK}.lora_A.weight": torch.tensor(1.0)}, f"'{BLOCK}.lora_A.weight' is not a matrix"),
    "down only": ({f"{BLOCK}.lora_A.weight": torch.ones(2, 160)}, "has no layers of a LoRA"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "bad.safetensors is a git-lfs pointer"),
    "empty": (b"", "bad.safetensors is not a safetensors file"),
}


def write(content: dict[str, torch.Tensor] | bytes, file: Path) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    return file


@pytest.mark.parametrize("kind", REFUSED)
def test_a_lora_that_does_not_fit_fails_its_own_request_with_the_true_cause(
    engine: LocalEngine, tmp_path: Path, kind: str
) -> None:
    content, words = REFUSED[kind]
    file = write(content, tmp_path / "bad.safetensors")
    plain = pixels(draw(engine))
    failed = draw(engine, (1, file))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.LORA_REFUSED
    assert words in failed.message
    assert str(tmp_path) not in failed.message
    assert pixels(draw(engine)) == plain


def test_an_incomplete_file_is_reported(engine: LocalEngine, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "cut.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    failed = draw(engine, (1, file))
    assert isinstance(failed, Failed)
    assert "cut.safetensors is cut off or damaged" in failed.message


@pytest.mark.parametrize("error", [AssertionError("what"), IndexError("what"), AttributeError("what")])
def test_whatever_the_library_stumbles_over_is_the_files_fault(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    failing(monkeypatch, error, times=1)
    failed = draw(engine, (1, file))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.LORA_REFUSED
    assert "unexpected" not in failed.message


# -- settings for PEFT -------------------------------------------------------------------------------------------------


def with_settings(file: Path, **settings: Any) -> Path:
    """A LoRA whose header has these settings, beside those that diffusers and PEFT write."""
    layers = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    usual = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers).to_dict() | {"target_modules": layers}
    own = {f"transformer.{name}": value for name, value in {**usual, **settings}.items()}
    save_file(load_file(write_lora(file)), file, {"format": "pt", "lora_adapter_metadata": json.dumps(own)})
    return file


def test_the_settings_that_diffusers_writes_are_taken(engine: LocalEngine, tmp_path: Path) -> None:
    plain, once = pixels(draw(engine)), pixels(draw(engine, (1, write_lora(tmp_path / "plain.safetensors"))))
    assert pixels(draw(engine, (1, with_settings(tmp_path / "same.safetensors")))) == once
    stronger = with_settings(tmp_path / "stronger.safetensors", lora_alpha=4 * RANK)
    assert pixels(draw(engine, (1, stronger))) not in (plain, once)
    of_a_layer = {"^transformer_blocks.0.attn.to_q": RANK, "to_k": RANK}
    patterns = {"rank_pattern": of_a_layer, "alpha_pattern": of_a_layer, "use_rslora": False}
    assert pixels(draw(engine, (1, with_settings(tmp_path / "patterns.safetensors", **patterns)))) == once


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", "([a-z_.0-9]+)+!"),  # a regular expression that takes for ever
        ("target_modules", ["([a-z_.0-9]+)+!"]),
        ("rank_pattern", {"([a-z_.0-9]+)+!": 2}),
        ("init_lora_weights", "pissa"),  # would take its start from the model's own weights, and change them
        ("alpha_pattern", {"to_q": "2"}),
        ("modules_to_save", ["proj_out"]),
        ("megatron_config", {"a": 1}),  # would import a module
        ("layer_replication", [[0, 4], [2, 5]]),
        ("a_setting_of_tomorrow", True),
    ],
)
def test_settings_that_do_more_than_a_lora_needs_are_refused(
    engine: LocalEngine, tmp_path: Path, name: str, value: object
) -> None:
    plain = pixels(draw(engine))
    failed = draw(engine, (1, with_settings(tmp_path / "odd.safetensors", **{name: value})))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.LORA_REFUSED
    assert f"odd.safetensors sets '{name}' in its header" in failed.message
    assert pixels(draw(engine)) == plain


@pytest.mark.parametrize("text", ["no JSON", "[1]", "[" * 100_000, '"' + "x" * 2**20 + '"'])
def test_settings_that_cannot_be_read_are_refused(engine: LocalEngine, tmp_path: Path, text: str) -> None:
    file = write_lora(tmp_path / "odd.safetensors")
    save_file(load_file(file), file, {"lora_adapter_metadata": text})
    failed = draw(engine, (1, file))
    assert isinstance(failed, Failed)
    assert "odd.safetensors has settings in its header that cannot be read." in failed.message


def test_a_file_of_settings_beside_a_lora_is_never_opened(engine: LocalEngine, tmp_path: Path) -> None:
    once = pixels(draw(engine, (1, write_lora(tmp_path / "style.safetensors"))))
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 50, "init_lora_weights": "pissa"}))
    opened, watching = list[str](), True

    def note(event: str, arguments: Any) -> None:  # nobody can remove a hook; this one does nothing after the test
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    assert pixels(draw(engine, (1, tmp_path / "style.safetensors"))) == once
    settings.read_text()
    watching = False
    assert [it for it in opened if it.endswith(".json")] == [str(settings)]  # by this test alone


# -- files that fit in part --------------------------------------------------------------------------------------------

#: What is added to a layer that fits, and the warning.
IGNORED: dict[str, tuple[dict[str, torch.Tensor], list[str]]] = {
    "nothing": ({}, []),
    "a deeper model": (
        layer("transformer.transformer_blocks.30.attn.to_q", "lora_A", "lora_B"),
        ["About 50 % of the layers of odd.safetensors are not in this model and are ignored."],
    ),
    "scales of a DoRA": (
        {f"{BLOCK}.dora_scale": torch.ones(160)},
        ["odd.safetensors is a DoRA: its LoRA part is applied, its scales are not."],
    ),
    "T5": (
        layer("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "lora_A", "lora_B"),
        [
            "The layers of odd.safetensors for the T5 text encoder are ignored.",
            "About 50 % of the layers of odd.safetensors are not in this model and are ignored.",
        ],
    ),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_ignored_layers_of_a_lora_are_reported_with_its_pictures(
    engine: LocalEngine, tmp_path: Path, kind: str
) -> None:
    more, warnings = IGNORED[kind]
    outcome = draw(engine, (1, write(FITS | more, tmp_path / "odd.safetensors")))
    assert isinstance(outcome, Generated)
    assert outcome.warnings == ((tuple(warnings),) if warnings else ())
    assert pixels(outcome) == pixels(draw(engine, (1, write(FITS, tmp_path / "plain.safetensors"))))
    after = draw(engine)
    assert isinstance(after, Generated)
    assert after.warnings == ()


def test_layers_in_the_key_names_of_kohya_are_counted_as_what_they_become(engine: LocalEngine, tmp_path: Path) -> None:
    """One matrix for queries, keys and values, which the library cuts in three."""
    noise, name = torch.Generator().manual_seed(0), "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": torch.randn(RANK, 160, generator=noise), f"{name}.alpha": torch.tensor(2.0)}
    tensors[f"{name}.lora_up.weight"] = torch.randn(3 * 160, RANK, generator=noise)
    outcome = draw(engine, (1, write(tensors, tmp_path / "kohya.safetensors")))
    assert isinstance(outcome, Generated)
    assert outcome.warnings == ()
    assert pixels(outcome) != pixels(draw(engine))


def test_every_picture_has_the_warnings_of_the_entrys_own_lora(tmp_path: Path) -> None:
    write(FITS | IGNORED["a deeper model"][0], tmp_path / "odd.safetensors")
    with engine_with(tmp_path, "loras: [{path: odd.safetensors}]") as engine:
        outcome = draw(engine)
        assert isinstance(outcome, Generated)
        assert outcome.warnings == (tuple(IGNORED["a deeper model"][1]),)


# -- weights that are kept in 8 bits -----------------------------------------------------------------------------------


def test_a_lora_on_weights_in_8_bits_counts_for_its_request_only(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    with engine_with(tmp_path, CAST) as engine:
        plain = pixels(draw(engine))
        assert pixels(draw(engine, (1, file))) != plain
        assert pixels(draw(engine)) == plain


def test_a_lora_added_to_an_entrys_own_counts_for_its_request_only(tmp_path: Path) -> None:
    write_lora(tmp_path / "own.safetensors", seed=1)
    more = write_lora(tmp_path / "more.safetensors", seed=2)
    with engine_with(tmp_path, CAST) as engine:
        plain = pixels(draw(engine))
    with engine_with(tmp_path, f"{CAST}\n    loras: [{{path: own.safetensors}}]") as engine:
        with_own = pixels(draw(engine))
        assert len({plain, with_own, pixels(draw(engine, (1, more)))}) == 3
        assert pixels(draw(engine)) == with_own


def test_the_lora_itself_is_not_rounded_to_8_bits(engine: LocalEngine, tmp_path: Path) -> None:
    # A quarter of the least number that float8_e4m3fn knows beside zero.
    file = tmp_path / "small.safetensors"
    tensors = {name: tensor.sign() * 2**-11 for name, tensor in load_file(write_lora(file)).items()}
    save_file({name: t * (2**19 if "lora_B" in name else 1) for name, t in tensors.items()}, file)
    strength = distance(draw(engine), draw(engine, (1, file)))
    with engine_with(tmp_path, CAST) as cast:
        assert distance(draw(cast), draw(cast, (1, file))) > strength / 2 > 0


def distance(one: Generated | Failed, other: Generated | Failed) -> float:
    pairs = list(zip(pixels(one), pixels(other), strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


# -- the device fails while a LoRA is added ----------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> None:
    """Make the library's own loading fail this many times, in the middle of its work."""
    real, left = peft.set_peft_model_state_dict, [error] * times

    def set_peft_model_state_dict(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(peft, "set_peft_model_state_dict", set_peft_model_state_dict)


def test_out_of_memory_while_a_lora_is_added_is_tried_once_more(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    expected = pixels(draw(engine, (1, file)))
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), times=1)
    outcome = draw(engine, (1, file))
    assert pixels(outcome) == expected
    assert outcome.made_room


def test_a_broken_device_is_not_the_loras_fault(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    failing(monkeypatch, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), times=1)
    failed = draw(engine, (1, file))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.DEVICE_FAULT


@pytest.mark.parametrize("offload", ["none", "model", "encoders", "sequential", "group"])
def test_a_lora_that_does_not_fit_does_not_change_an_offloaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    build("flux-dev", tmp_path / "flux-dev")
    file = write_lora(tmp_path / "style.safetensors", width=32)
    fields = {"type": "flux", "local_path": "flux-dev", "base_size": 64, "torch_dtype": "float32"}
    text = json.dumps({"models": {"tiny": {"name": "A", "cpu_offload": offload} | fields}})
    with pretended() as cuda:
        engine = LocalEngine(EngineOptions(device="cuda"))
        load = Load.entry(parse_catalog(text, SPECS), "tiny", Folders(tmp_path, tmp_path))
        assert isinstance(engine.load(load), Loaded)
        plain, with_lora = pixels(draw(engine)), pixels(draw(engine, (1, file)))
        on_device, calls = cuda.device.bytes, cuda.calls["linear"]
        assert pixels(draw(engine)) == plain != with_lora
        a_picture = cuda.calls["linear"] - calls
        failing(monkeypatch, RuntimeError("size mismatch"), times=1)
        failed = draw(engine, (1, file))
        assert isinstance(failed, Failed)
        assert failed.code is FailureCode.LORA_REFUSED
        calls = cuda.calls["linear"]
        assert pixels(draw(engine)) == plain
        # It was the device that drew, and it keeps no more than before.
        assert cuda.calls["linear"] - calls == a_picture > 0
        assert cuda.device.bytes == on_device
        assert pixels(draw(engine, (1, file))) == with_lora
        engine.close()
