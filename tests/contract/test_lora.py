"""A LoRA counts for one request and is gone afterwards, on real weights."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import FailureCode
from imagegen.core.task import Lora
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded
from tests.conftest import load_command, request_for

RANK = 2


@pytest.fixture
def engine(shipped: Catalog) -> Iterator[LocalEngine]:
    engine = LocalEngine(EngineOptions(device="cpu"))
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)
    yield engine
    engine.close()


def write_lora(path: Path, width: int = 160) -> Path:
    """A random adapter for the attention of the embedded model's first block, in diffusers' key names."""
    noise = torch.Generator().manual_seed(0)
    tensors = {}
    for part in ("to_q", "to_k", "to_v"):
        key = f"transformer.transformer_blocks.0.attn.{part}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, width, generator=noise)
        tensors[f"{key}.lora_B.weight"] = torch.randn(width, RANK, generator=noise)
    save_file(tensors, path)
    return path


def draw(engine: LocalEngine, lora: Lora | None = None, file: Path | None = None) -> Generated | Failed:
    command = Generate(model="tiny", request=request_for(lora=lora), lora_file=str(file) if file else None)
    outcome = engine.generate(command, threading.Event(), lambda step, total: None)
    assert isinstance(outcome, Generated | Failed)
    return outcome


def pixels(outcome: Generated | Failed) -> bytes:
    assert isinstance(outcome, Generated)
    return outcome.images[0].rgb


def test_a_lora_changes_its_own_picture_and_no_later_one(engine: LocalEngine, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "style.safetensors")
    plain = pixels(draw(engine))
    full = pixels(draw(engine, Lora(path="style.safetensors", scale=1), file))
    half = pixels(draw(engine, Lora(path="style.safetensors", scale=0.5), file))
    assert len({plain, full, half}) == 3
    assert pixels(draw(engine)) == plain


def test_a_lora_that_does_not_fit_fails_its_own_request_only(engine: LocalEngine, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "other.safetensors", width=96)
    plain = pixels(draw(engine))
    failed = draw(engine, Lora(path="other.safetensors", scale=1), file)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == (FailureCode.LORA_REFUSED, "The LoRA file does not fit this model.")
    assert pixels(draw(engine)) == plain
