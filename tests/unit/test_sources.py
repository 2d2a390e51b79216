"""The places of weights: an entry's folder, and LoRA files, which must be below their directory."""

import os
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagegen.builtin import builtin_model
from imagegen.catalog.hub_cache import HubCache
from imagegen.catalog.sources import local_folder, lora_files, weights_here
from imagegen.core.errors import LoraNotFound
from imagegen.core.task import Lora
from imagegen.testing.fake import FakeSpec

MODELS = Path("models")


def find(path: str, loras: Path) -> Path:
    (file,) = lora_files([Lora(path=path, scale=1)], loras)
    return file


def spec(local_path: str | None) -> FakeSpec:
    return FakeSpec(name="A", type="fake", local_path=local_path)


def test_an_entry_without_a_path_has_no_folder() -> None:
    assert local_folder(spec(None), MODELS) is None


def test_a_relative_path_is_below_the_models_directory() -> None:
    assert local_folder(spec("flux/dev"), MODELS) == MODELS / "flux/dev"


def test_an_absolute_path_stays_as_it_is(tmp_path: Path) -> None:
    assert local_folder(spec(str(tmp_path)), MODELS) == tmp_path


def test_a_home_directory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder(spec("~/weights"), MODELS) == tmp_path / "weights"


def test_the_embedded_model_is_in_the_package() -> None:
    folder = local_folder(spec("builtin:tiny"), MODELS)
    assert folder == builtin_model("tiny")
    assert folder is not None
    assert (folder / "model_index.json").is_file()


# -- LoRA files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    (folder / "style").mkdir(parents=True)
    for name in ("ink.safetensors", "style/oil.safetensors", "notes.txt", "old.bin", "old.pt", "old.ckpt"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("path", ["ink.safetensors", "style/oil.safetensors"])
def test_a_safetensors_file_below_the_directory_is_found(loras: Path, path: str) -> None:
    assert find(path, loras) == (loras / path).resolve()


@pytest.mark.parametrize(
    "path",
    [
        "missing.safetensors",
        "../outside.safetensors",
        "style/../ink.safetensors",
        "style/../../outside.safetensors",
        "/etc/passwd",
        "",
        ".",
        "..",
        "style",
        "notes.txt",
        "old.bin",
        "old.pt",
        "old.ckpt",
        "ink.safetensors/x",
        "a\0b.safetensors",
        "\ud800.safetensors",
        "x" * 5000,
        "https://example.org/ink.safetensors",
    ],
)
def test_everything_else_is_not_found_whatever_it_is(loras: Path, path: str) -> None:
    with pytest.raises(LoraNotFound) as raised:
        find(path, loras)
    assert raised.value.detail == LoraNotFound().detail


def test_a_link_to_the_outside_is_not_found(loras: Path) -> None:
    (loras / "link.safetensors").symlink_to(loras.parent / "outside.safetensors")
    (loras / "up").symlink_to(loras.parent)
    for path in ("link.safetensors", "up/outside.safetensors"):
        with pytest.raises(LoraNotFound):
            find(path, loras)


def test_a_link_to_itself_is_not_found(loras: Path) -> None:
    (loras / "loop.safetensors").symlink_to(loras / "loop.safetensors")
    with pytest.raises(LoraNotFound):
        find("loop.safetensors", loras)


def test_a_pipe_is_no_file(loras: Path) -> None:
    os.mkfifo(loras / "pipe.safetensors")
    with pytest.raises(LoraNotFound):
        find("pipe.safetensors", loras)


def test_a_file_of_a_repository_is_found_only_inside_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loras: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = HubCache("org/name")
    commit = "0" * 40
    cache.blob("abc").parent.mkdir(parents=True)
    cache.blob("abc").write_bytes(b"x")
    cache.link(commit, "sub/a.safetensors", "abc")
    (cache.folder / "snapshots" / commit / "out.safetensors").symlink_to(loras / "ink.safetensors")

    def find_in(name: str) -> Path:
        return lora_files([Lora(path=name, repo=f"org/name@{commit}", scale=1)], loras)[0]

    assert find_in("sub/a.safetensors").read_bytes() == b"x"
    for name in ("out.safetensors", "sub/../../../../../loras/ink.safetensors", str(loras / "ink.safetensors")):
        with pytest.raises(LoraNotFound):
            find_in(name)


def test_without_a_directory_there_is_no_lora(tmp_path: Path) -> None:
    with pytest.raises(LoraNotFound):
        find("ink.safetensors", tmp_path / "none")


@given(st.text(max_size=40) | st.from_regex(r"(\.\./|/|style/|ink|\.safetensors|\0){1,6}", fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_lora_path_leads_outside_the_directory(loras: Path, path: str) -> None:
    try:
        found = find(path, loras)
    except LoraNotFound:
        return
    assert found.is_relative_to(loras.resolve())
    assert found.suffix == ".safetensors"


def test_weights_without_read_permission_count_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **options: object) -> NoReturn:
        raise PermissionError

    entry = spec("weights")
    for name in ("exists", "is_dir", "is_file", "read_text"):
        monkeypatch.setattr(Path, name, refuse)
    assert not weights_here(entry, tmp_path)
    with pytest.raises(LoraNotFound):
        lora_files([Lora(path="a.safetensors", repo=f"org/name@{'0' * 40}", scale=1)], tmp_path)
