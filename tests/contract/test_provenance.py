"""The identity of weights: the hub's commit, or a hash of the files."""

from pathlib import Path

import pytest

from imagegen.loaders import provenance
from imagegen.loaders.provenance import identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "model"
    (home / "vae").mkdir(parents=True)
    (home / "model_index.json").write_text("{}")
    (home / "vae" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    return home


def test_the_same_files_are_the_same_weights_wherever_they_lie(folder: Path) -> None:
    before = identity(folder)
    assert before.startswith("sample-sha256:")
    assert identity(folder.rename(folder.with_name("moved"))) == before


def test_files_that_are_not_weights_do_not_count(folder: Path) -> None:
    before = identity(folder)
    (folder / "README.md").write_text("hello")
    assert identity(folder) == before


@pytest.mark.parametrize("place", [0, 5000, 10_239])
def test_any_byte_counts_in_a_small_file(folder: Path, place: int) -> None:
    before, file = identity(folder), folder / "vae" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert identity(folder) != before


def test_a_name_counts(folder: Path) -> None:
    before, file = identity(folder), folder / "vae" / "weights.safetensors"
    file.rename(file.with_name("other.safetensors"))
    assert identity(folder) != before


@pytest.mark.parametrize("place", [0, 330, 999])
def test_of_a_large_file_pieces_are_read_from_its_first_byte_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(provenance, "_PIECES", 4)
    monkeypatch.setattr(provenance, "_PIECE", 20)
    (file := tmp_path / "large.gguf").write_bytes(bytes(1000))
    before = identity(file)
    data = bytearray(1000)
    data[place] = 1
    file.write_bytes(data)
    assert identity(file) != before


def test_the_size_of_a_large_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PIECES", 2)
    monkeypatch.setattr(provenance, "_PIECE", 1)
    (file := tmp_path / "large.gguf").write_bytes(bytes(1000))
    before = identity(file)
    file.write_bytes(bytes(1001))
    assert identity(file) != before


def test_in_the_hubs_cache_the_identity_is_the_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / COMMIT
    assert identity(snapshot) == f"black-forest-labs/FLUX.1-dev@{COMMIT}"
    assert identity(snapshot / "dir" / "a.gguf") == f"black-forest-labs/FLUX.1-dev@{COMMIT}/dir/a.gguf"
