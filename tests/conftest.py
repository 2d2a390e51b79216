"""Shared by all tests: catalogs of fake models, and the embedded model's commands."""

import gc
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imagegen.builtin import default_config
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import load_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest
from imagegen.gpu.protocol import EngineOptions, Load
from imagegen.testing import SPECS, WITH_FAKE
from imagegen.testing.config import fake_catalog as fake_catalog
from imagegen.testing.config import fake_config as fake_config

if TYPE_CHECKING:
    from tests.s3 import Bucket

#: Of an engine on the CPU that knows the fake family.
CPU = EngineOptions(device="cpu", families=WITH_FAKE)


def pytest_collection_finish() -> None:
    """An unload collects garbage. Without this it would look at all of torch and of the tests each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def shipped() -> Catalog:
    """The catalog that imagegen ships with."""
    return load_catalog(default_config(), SPECS)


def load_command(catalog: Catalog, model: str, models: Path = Path("models")) -> Load:
    """The command that loads a model of a catalog."""
    return Load.entry(catalog, model, Folders(models, models / "loras"))


def request_for(prompt: str = "a red circle on a blue background", **changes: Any) -> GenerationRequest:
    """A small, complete request."""
    fields = {"width": 64, "height": 64, "steps": 4, "guidance_scale": 0.0, "seed": 7} | changes
    return GenerationRequest(prompt=prompt, **fields)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes and returns its folder."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False, capture_output=True
        )
        if done.returncode != 0:
            pytest.skip("needs the right to mount a small disk")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def bucket_server() -> Iterator["Bucket"]:
    """An S3 server with an empty bucket."""
    from tests.s3 import Bucket  # a second that few tests need

    with Bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(bucket_server: "Bucket", monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """The same, with its credentials in this process's environment."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    return bucket_server


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the compiler: traces as usual and runs the traces. The real compiler takes ten seconds."""
    import torch
    from torch._dynamo.utils import counters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, when it is imported
        torch._dynamo.reset()
    counters.clear()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, **how | {"backend": "eager"}))
