"""A part in several files is read by one thread for each file, with the same result."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxTransformer2DModel
from diffusers.models import modeling_utils

from imagegen.catalog.loading import parse_catalog
from imagegen.gpu.engine import PARALLEL_LOADING, LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Loaded
from imagegen.loaders import SPECS
from tests.conftest import load_command, request_for
from tests.pipelines import build
from tests.pretend_cuda import pretended

ENTRY = '{"models": {"a": {"name": "A", "type": "flux", "local_path": "flux-dev", "base_size": 64}}}'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX whose transformer is cut into several files."""
    folder = tmp_path_factory.mktemp("models")
    build("flux-dev", folder / "flux-dev")
    home = folder / "flux-dev" / "transformer"
    transformer = FluxTransformer2DModel.from_pretrained(home)
    (home / "diffusion_pytorch_model.safetensors").unlink()
    transformer.save_pretrained(home, max_shard_size="100KB")
    return folder


def test_the_pictures_are_the_same(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by: list[set[str]] = []
    load = modeling_utils._load_shard_file

    def seen(*args: Any, **kwargs: Any) -> Any:
        read_by[-1].add(threading.current_thread().name)
        return load(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "_load_shard_file", seen)
    monkeypatch.setattr("diffusers.models.model_loading_utils._load_shard_file", seen)
    pictures = []
    for parallel in (False, True):
        monkeypatch.setattr(modeling_utils, "HF_ENABLE_PARALLEL_LOADING", parallel)
        read_by.append(set())
        with pretended():
            engine = LocalEngine(EngineOptions(device="cuda"))
            loaded = engine.load(load_command(parse_catalog(ENTRY, SPECS), "a", models))
            assert isinstance(loaded, Loaded), loaded
            drawn = engine.generate(Generate(model="a", request=request_for()), threading.Event(), lambda *_: None)
            assert isinstance(drawn, Generated), drawn
            pictures.append(drawn.images[0].rgb)
            engine.close()
    assert read_by[0] == {"MainThread"}
    assert len(read_by[1]) > 1
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(("device", "told"), [("cuda", "yes"), ("cpu", None)])
def test_parallel_loading_is_enabled_if_there_is_a_device(
    device: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARALLEL_LOADING[0], "so that it is restored")
    monkeypatch.delenv(PARALLEL_LOADING[0])
    with pretended():
        assert LocalEngine(EngineOptions(device=device)).device == device
        assert os.environ.get(PARALLEL_LOADING[0]) == told


def test_diffusers_reads_the_word() -> None:
    code = (
        "from diffusers.models.modeling_utils import HF_ENABLE_PARALLEL_LOADING as on; raise SystemExit(on is not True)"
    )
    name, value = PARALLEL_LOADING
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | {name: value}, check=True)
