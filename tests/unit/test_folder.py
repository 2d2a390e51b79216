"""The checks of a pipeline's folder before a load, and the message for each fault."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from imagegen.builtin import builtin_model
from imagegen.catalog.sources import Folders, weights_here
from imagegen.core.errors import EngineError, FailureCode, LoraRefused, WeightsCorrupt
from imagegen.loaders.diffusers_model import check_pipeline
from imagegen.loaders.flux import FluxModelLoader, FluxSpec
from imagegen.loaders.folder import check_file, header_bytes, read_header
from imagegen.loaders.lora_file import LoraFile

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


# -- lists of shards ---------------------------------------------------------------------------------------------------


def shard(folder: Path, *named: str) -> None:
    """Make the VAE's weights one shard, and its list name these files, too."""
    vae = folder / "vae"
    one = "diffusion_pytorch_model-00001-of-00001.safetensors"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / one)
    weight_map = {str(number): name for number, name in enumerate((one, *named))}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_list_of_whole_shards_passes(folder: Path) -> None:
    shard(folder)
    check(folder)


def test_a_part_with_an_adapter_is_refused(folder: Path) -> None:
    # transformers would load the model that it names, from any path, and the adapter from a pickle.
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    code, detail = fault(folder)
    assert code is FailureCode.WEIGHTS_REFUSED
    assert detail.startswith("text_encoder/adapter_config.json describes an adapter")


@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "weights.safetensors.bin", "weights"])
def test_a_shard_of_another_format_is_refused(folder: Path, name: str) -> None:
    shard(folder, name)
    (folder / "vae" / name).write_bytes(b"pickle")
    code, detail = fault(folder)
    assert code is FailureCode.WEIGHTS_REFUSED
    assert f"names {name}, which is no .safetensors file" in detail


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/x.safetensors", "a\\..\\x.safetensors", ""])
def test_a_shard_outside_the_folder_is_refused_whether_it_exists_or_not(folder: Path, name: str) -> None:
    (folder.parent / "outside.safetensors").write_bytes(b"x")
    shard(folder, name)
    code, detail = fault(folder)
    assert code is FailureCode.WEIGHTS_REFUSED
    assert "names a file outside its folder" in detail


@pytest.mark.parametrize("weight_map", [{"a": 1}, {"a": None}, {"a": ["x.safetensors"]}, {"a": {}}, [], "x", None])
def test_a_list_that_is_none_is_corrupt(folder: Path, weight_map: object) -> None:
    shard(folder)
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert fault(folder)[0] is FailureCode.WEIGHTS_CORRUPT


def test_a_named_shard_is_read_as_safetensors(folder: Path) -> None:
    shard(folder, "other.safetensors")
    (folder / "vae" / "other.safetensors").write_bytes(b"pickle, in disguise")
    code, detail = fault(folder)
    assert code is FailureCode.WEIGHTS_CORRUPT
    assert "vae/other.safetensors is not a safetensors file" in detail


def test_the_list_of_a_part_from_elsewhere_is_checked_too(folder: Path) -> None:
    shutil.copytree(folder / "vae", folder.parent / "other")
    shutil.copytree(folder, folder.parent / "broken")
    shard(folder.parent / "broken", "weights.bin")
    shutil.copytree(folder.parent / "broken" / "vae", folder.parent / "mine")
    (folder.parent / "mine" / "weights.bin").write_bytes(b"pickle")
    for source, passes in (("other", True), ("mine", False)):
        entry = FluxSpec.model_validate(
            {"name": "A", "type": "flux", "local_path": "flux", "parts": {"vae": f"./{source}"}}
        )
        with nullcontext() if passes else pytest.raises(EngineError, match=r"weights\.bin"):
            check_pipeline(entry, folder, Folders(folder.parent, folder.parent))


# -- headers that lie --------------------------------------------------------------------------------------------------

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def safetensors(file: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def test_a_true_header_passes(tmp_path: Path) -> None:
    file = safetensors(tmp_path / "a.safetensors", {"__metadata__": {"format": "pt"}, "x": GOOD})
    assert read_header(file, "a")["x"].shape == (2, 3)
    assert (header_bytes(file, 2), header_bytes(file, 4)) == (12, 24)


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": None},
        {"shape": "23"},
        {"shape": {"0": 6}},
        {"shape": ["2", "3"]},
        {"shape": [2, -3]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"shape": [True, 6]},
        {"shape": [2, 4]},
        {"shape": [10**30]},
        {"dtype": ["F32"]},
        {"dtype": None},
        {"dtype": "F64"},
        {"data_offsets": [0]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [-8, 24]},
        {"data_offsets": "ab"},
        {"data_offsets": [0, True]},
    ],
)
@pytest.mark.parametrize("left_out", [True, False])
def test_a_header_that_lies_is_corrupt(tmp_path: Path, lie: dict[str, object], left_out: bool) -> None:
    told = {key: it for key, it in GOOD.items() if key not in lie} if left_out else GOOD | lie
    file = safetensors(tmp_path / "a.safetensors", {"x": told})
    for read in (lambda: read_header(file, "a"), lambda: header_bytes(file, 2), lambda: check_file(file, file.name)):
        with pytest.raises(WeightsCorrupt):
            read()
    with pytest.raises(LoraRefused):
        LoraFile.read(file)


@pytest.mark.parametrize("part", [None, [], "x", 1, [1, 2]])
def test_a_tensor_that_is_not_described_is_corrupt(tmp_path: Path, part: object) -> None:
    with pytest.raises(WeightsCorrupt):
        read_header(safetensors(tmp_path / "a.safetensors", {"y": GOOD, "x": part}), "a")


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(folder: Path) -> None:
    (folder / VAE).unlink()
    os.mkfifo(folder / VAE)
    code, detail = fault(folder)
    assert code in (FailureCode.WEIGHTS_UNREADABLE, FailureCode.WEIGHTS_MISSING)
    assert str(folder) not in detail
