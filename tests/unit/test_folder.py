"""The checks of a pipeline's folder before a load, and the message for each fault."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagegen.builtin import builtin_model
from imagegen.catalog.sources import Folders, weights_here
from imagegen.core.errors import EngineError, FailureCode
from imagegen.loaders.diffusers_model import check_pipeline
from imagegen.loaders.flux import FluxModelLoader, FluxSpec

#: A user that owns nothing.
STRANGER = 65534

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A copy of the embedded model, in a folder that every user may read."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    yield shutil.copytree(builtin_model("tiny"), home / "flux")
    shutil.rmtree(home)


def spec(**fields: str) -> FluxSpec:
    return FluxSpec.model_validate({"name": "A", "type": "flux", "local_path": "flux"} | fields)


def check(folder: Path, **fields: str) -> None:
    check_pipeline(spec(**fields), folder, Folders(folder.parent, folder.parent))


def fault(folder: Path) -> tuple[FailureCode, str]:
    with pytest.raises(EngineError) as raised:
        check(folder)
    assert str(folder) not in raised.value.detail
    return raised.value.failure, raised.value.detail


def test_a_complete_folder_passes(folder: Path) -> None:
    check(folder)
    assert weights_here(spec(), folder.parent)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vae/._diffusion_pytorch_model.safetensors", b"\0\5\x16\7"),
        ("vae/._config.json", b"\0\5\x16\7"),
        ("vae/diffusion_pytorch_model (1).safetensors", b"cut"),
        ("vae/diffusion_pytorch_model.old.safetensors", b""),
        ("vae/sdxl_vae.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("vae/diffusion_pytorch_model.bin", b"pickle"),
        ("text_encoder_2/model.fp16.safetensors", b""),
        ("flux1-dev.safetensors", b""),
    ],
)
def test_a_file_that_no_load_reads_is_not_looked_at(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    check(folder)
    assert weights_here(spec(), folder.parent)


def test_a_linked_folder_of_a_part_is_read_like_any_other(folder: Path) -> None:
    shutil.move(folder / "vae", folder.parent / "elsewhere")
    (folder / "vae").symlink_to(folder.parent / "elsewhere")
    check(folder)
    assert weights_here(spec(), folder.parent)


def a_pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 167335342\n")


def a_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/gone")


def a_mark(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def only_a_note_of_macos(file: Path) -> None:
    file.rename(file.with_name(f"._{file.name}"))


@pytest.mark.parametrize(
    ("break_it", "name", "code", "words"),
    [
        (a_pointer, VAE, "weights_missing", f"{VAE} is a git-lfs pointer"),
        (a_pointer, "tokenizer/tokenizer.json", "weights_missing", "tokenizer/tokenizer.json is a git-lfs pointer"),
        (a_pointer, "model_index.json", "weights_missing", "model_index.json is a git-lfs pointer"),
        (a_dangling_link, VAE, "weights_missing", f"{VAE} is a link to a file that is not there"),
        (a_dangling_link, "vae/config.json", "weights_missing", "vae/config.json is a link to a file that is not"),
        (a_dangling_link, "model_index.json", "weights_missing", "model_index.json is a link to a file that is not"),
        (a_mark, "model_index.json", "weights_refused", "model_index.json begins with a byte order mark"),
        (a_mark, "vae/config.json", "weights_refused", "vae/config.json begins with a byte order mark"),
        (only_a_note_of_macos, VAE, "weights_missing", "is a macOS metadata file"),
        (Path.unlink, VAE, "weights_missing", "no safetensors weights for 'vae'"),
        (Path.unlink, "scheduler/scheduler_config.json", "weights_missing", "no files for 'scheduler'"),
    ],
)
def test_each_fault_has_its_own_sentence(
    folder: Path, break_it: Callable[[Path], object], name: str, code: str, words: str
) -> None:
    break_it(folder / name)
    found, detail = fault(folder)
    assert found == code
    assert words in detail


@pytest.mark.parametrize("name", [VAE, "vae/config.json", "vae", "model_index.json", "."])
def test_a_file_without_read_permission_is_reported_with_the_uid(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    was = os.geteuid()
    if was == 0:  # root may read everything
        os.seteuid(STRANGER)
    try:
        code, detail = fault(folder)
        uid = os.geteuid()
    finally:
        os.seteuid(was)
    assert code is FailureCode.WEIGHTS_UNREADABLE
    assert f"uid {uid}" in detail
    assert Path(name).name in detail


def test_a_folder_with_only_its_index_is_not_here(folder: Path) -> None:
    for part in [it for it in folder.iterdir() if it.is_dir()]:
        shutil.rmtree(part)
    assert not weights_here(spec(), folder.parent)
    assert fault(folder)[0] is FailureCode.WEIGHTS_MISSING


def test_an_empty_folder_is_not_here_and_the_cache_is_used(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    assert not weights_here(spec(), folder.parent)
    assert not weights_here(spec(hf_path="imagegen-tests/in-nobodys-cache"), folder.parent)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sdxl.safetensors", "a single file of weights, a checkpoint or one part of a model: sdxl.safetensors"),
        ("flux1-dev-Q4_K_S.gguf", "a GGUF file, for an entry of type gguf: flux1-dev-Q4_K_S.gguf"),
        ("v1-5.ckpt", "pickled weights, which can execute code and is never opened: v1-5.ckpt"),
    ],
)
def test_a_file_instead_of_a_folder_is_reported_with_its_kind(folder: Path, name: str, words: str) -> None:
    (folder.parent / name).write_bytes(b"x")
    entry, folders = spec(local_path=name), Folders(folder.parent, folder.parent)
    with pytest.raises(EngineError) as raised:
        FluxModelLoader().check(entry, folders)
    assert raised.value.failure is FailureCode.WEIGHTS_REFUSED
    assert words in raised.value.detail
    assert "put them into" not in raised.value.detail
    assert not weights_here(entry, folder.parent)


def test_shards_that_the_list_names_are_looked_for(folder: Path) -> None:
    vae = folder / "vae"
    weights = vae / "diffusion_pytorch_model.safetensors"
    weights.rename(vae / "diffusion_pytorch_model-00001-of-00001.safetensors")
    shards = {"a": "diffusion_pytorch_model-00001-of-00001.safetensors", "b": "other.safetensors"}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert fault(folder) == (FailureCode.WEIGHTS_MISSING, "The model's folder lacks vae/other.safetensors.")
