"""A pipeline in which only some parts have weights in fp16, as in some repositories."""

import shutil
from pathlib import Path

from imagegen.builtin import builtin_model
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Load, Loaded


def test_it_loads(tmp_path: Path, shipped: Catalog) -> None:
    shutil.copytree(builtin_model("tiny"), tmp_path / "tiny")
    weights = tmp_path / "tiny" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    catalog = shipped.evolve(models={"tiny": shipped.model("tiny").evolve(local_path="tiny")})
    engine = LocalEngine(EngineOptions(device="cpu"))
    loaded = engine.load(Load.entry(catalog, "tiny", Folders(tmp_path, tmp_path)))
    assert isinstance(loaded, Loaded), loaded
    engine.close()
