"""A failed import in a worker process: the cause is reported, and the next load starts in a new worker."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import COMPILER_CACHES
from imagegen.gpu.protocol import EngineOptions, Failed, Loaded
from imagegen.gpu.worker_engine import WorkerEngine
from tests.conftest import load_command

#: While the file `full` is there, no folder for temporary files can be found, as on a machine whose disks are full.
NO_ROOM = """
import os, tempfile
real = tempfile._get_default_tempdir
def full(*args):
    if os.path.exists({full!r}):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")
    return real(*args)
tempfile._get_default_tempdir = full
"""

#: A torchvision that was built for another torch.
OTHER_BUILD = 'import torch\n@torch.library.register_fake("torchvision::nms")\ndef nms(dets, scores, iou): ...\n'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that workers import modules from."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    )
    # With a folder of its own for the compiler, torch asks for no temporary one at its import.
    for variable in ("TMPDIR", *COMPILER_CACHES):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[WorkerEngine]:
    made = WorkerEngine(EngineOptions(device="cpu", temporary_dir=str(tmp_path / "data" / "tmp")))
    yield made
    made.close()


def refused(engine: WorkerEngine, shipped: Catalog) -> Failed:
    outcome = engine.load(load_command(shipped, "tiny"))
    assert isinstance(outcome, Failed), outcome
    return outcome


def test_after_a_full_disk_has_room_again_a_load_succeeds(
    engine: WorkerEngine, shipped: Catalog, site: Path, tmp_path: Path
) -> None:
    (site / "sitecustomize.py").write_text(NO_ROOM.format(full=str(tmp_path / "full")))
    (tmp_path / "full").touch()
    failed = refused(engine, shipped)
    assert failed.code is FailureCode.IMPORT_FAILED
    assert f"no temporary file can be written to {tmp_path / 'data' / 'tmp'}" in failed.message
    assert failed.worker_replaced
    assert not failed.worker_died
    (tmp_path / "full").unlink()
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)


def test_a_torchvision_of_another_build_is_reported_until_it_is_removed(
    engine: WorkerEngine, shipped: Catalog, site: Path
) -> None:
    for folder in ("torchvision", "torchvision-0.28.0.dist-info"):
        (site / folder).mkdir()
    (site / "torchvision" / "__init__.py").write_text(OTHER_BUILD)
    metadata = site / "torchvision-0.28.0.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    failed = refused(engine, shipped)
    assert failed.code is FailureCode.ENGINE_MISSING
    assert "torchvision is of another build than torch" in failed.message
    assert "make vision" in failed.message
    for folder in ("torchvision", "torchvision-0.28.0.dist-info"):
        shutil.rmtree(site / folder)
    assert isinstance(engine.load(load_command(shipped, "tiny")), Loaded)


def test_a_worker_writes_temporary_files_into_its_own_empty_folder(
    engine: WorkerEngine, site: Path, tmp_path: Path
) -> None:
    left = tmp_path / "data" / "tmp" / "left-behind"
    left.parent.mkdir(parents=True)
    left.touch()
    told = tmp_path / "told"
    (site / "sitecustomize.py").write_text(
        f"import os, tempfile\nopen({str(told)!r}, 'w').write(tempfile.gettempdir())\n"
    )
    assert not isinstance(engine.measure(), Failed)
    assert told.read_text() == str(left.parent)
    assert not left.exists()


def test_tmpdir_names_another_folder_for_temporary_files(
    engine: WorkerEngine, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    told = tmp_path / "told"
    (site / "sitecustomize.py").write_text(
        f"import os, tempfile\nopen({str(told)!r}, 'w').write(tempfile.gettempdir())\n"
    )
    assert not isinstance(engine.measure(), Failed)
    assert told.read_text() == str(tmp_path)
