"""Numbers that overflow are a failure with advice instead of a black picture, and a VAE can have a wider dtype."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Loaded
from tests.conftest import load_command
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, draw, provenance, run, shelf_of

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

KINDS = ("flux-dev", "sdxl", "sana-sprint")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Models whose VAEs overflow in float16 and not in float32, as that of XL does."""
    with shelf_of(tmp_path_factory.mktemp("models"), KINDS) as shelf:
        for kind in KINDS:
            file = shelf.model(kind) / "vae/diffusion_pytorch_model.safetensors"
            weights = load_file(file)
            # The encoder of Sana has no norm after it: its latents would be as large.
            for name in ("decoder.conv_in",) if kind == "sana-sprint" else ("encoder.conv_in", "decoder.conv_in"):
                largest = max(weights[f"{name}.{part}"].abs().max() for part in ("weight", "bias"))
                for part in ("weight", "bias"):
                    weights[f"{name}.{part}"] *= 60_000 / largest
            save_file(weights, file, {"format": "pt"})
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


def load(engine: LocalEngine, shelf: Shelf, kind: str, **changes: Any) -> None:
    catalog = catalog_of(**{kind: shelf.entry(kind) | {"torch_dtype": "float16"} | changes})
    loaded = engine.load(load_command(catalog, kind, shelf.folder))
    assert isinstance(loaded, Loaded), loaded


def test_a_picture_of_no_numbers_is_a_failure_with_advice(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "flux-dev")
    for task in ("text2image", "image2image"):
        failed = run(engine, "flux-dev", task)
        assert isinstance(failed, Failed), task
        assert failed.code is FailureCode.NOT_FINITE
        assert "bfloat16 or float32" in failed.message
        assert "vae_dtype to float32" in failed.message


def test_infinite_numbers_are_found_before_they_are_clipped(
    engine: LocalEngine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(engine, shelf, "flux-dev", torch_dtype="float32")
    model: Any = engine._models["flux-dev"].model
    bias = model._pipeline.vae.decoder.conv_out.bias
    bias.data[0] = torch.inf
    failed = run(engine, "flux-dev")
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.NOT_FINITE


@pytest.mark.parametrize("kind", KINDS)
def test_a_vae_with_vae_dtype_float32_draws_like_a_float32_vae(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    tasks = ("text2image", "image2image", "inpaint")[: 2 if kind == "sana-sprint" else 3]
    load(engine, shelf, kind, torch_dtype="float32")
    expected = {task: draw(engine, kind, task).astype(float) for task in tasks}
    load(engine, shelf, kind, vae_dtype="float32")
    vae = engine._models[kind].model._pipeline.vae  # type: ignore[attr-defined]
    made_by = provenance(engine, kind)
    assert (made_by.dtype, made_by.options["vae_dtype"]) == ("float16", "float32")
    for task in tasks:
        drawn = draw(engine, kind, task)
        assert np.abs(drawn.astype(float) - expected[task]).mean() < 12, task
        assert drawn.std() > 5, task
        assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
        assert np.array_equal(draw(engine, kind, task), drawn), task
    assert {"encode", "decode"}.isdisjoint(vae.__dict__)
