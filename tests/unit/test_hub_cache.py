"""The files of the hub that are on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.hub_cache import EVERYTHING, HubCache, is_here, lacks
from imagegen.catalog.pipeline_files import INDEX
from imagegen.catalog.sources import cached_file, cached_snapshot, missing, weights_here
from imagegen.loaders.flux import FluxSpec
from imagegen.loaders.gguf import GGUFSpec
from imagegen.loaders.nunchaku import NunchakuSpec
from imagegen.testing.fake import FakeSpec

COMMIT, OLDER = "a" * 40, "b" * 40
PIPELINE = {
    "model_index.json": '{"vae": ["diffusers", "AutoencoderKL"]}',
    "vae/diffusion_pytorch_model.safetensors": "",
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(repo: str, files: dict[str, str], commit: str = COMMIT, ref: str | None = "main") -> HubCache:
    cache = HubCache(repo)
    for number, (path, content) in enumerate(files.items()):
        blob = cache.blob(f"{number:040}")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(content)
        cache.link(commit, path, blob.name)
    if ref is not None:
        cache.set_ref(ref, commit)
    return cache


def entry(**fields: Any) -> FakeSpec:
    return FakeSpec.model_validate({"name": "A", "type": "fake", **fields})


def test_linked_files_are_found_like_huggingface_hub_finds_them(root: Path) -> None:
    put("org/name", PIPELINE)
    snapshot = root / "models--org--name" / "snapshots" / COMMIT
    assert (
        cached_snapshot("org/name")
        == snapshot
        == Path(snapshot_download("org/name", cache_dir=root, local_files_only=True))
    )
    file = cached_file("org/name", "model_index.json")
    assert str(file) == try_to_load_from_cache("org/name", "model_index.json", cache_dir=root)
    assert file is not None
    assert file.is_symlink()
    assert not file.readlink().is_absolute()
    assert json.loads(file.read_text())


def test_branches_tags_and_commits_are_found() -> None:
    put("org/name", PIPELINE, ref="v1")
    assert cached_snapshot("org/name@v1") == cached_snapshot(f"org/name@{COMMIT}") is not None
    assert cached_snapshot("org/name") is None
    assert cached_snapshot("org/other") is None
    assert cached_file("org/name@v1", "nothing.json") is None


def test_a_ref_that_names_no_commit_is_none() -> None:
    cache = put("org/name", PIPELINE)
    (cache.folder / "refs" / "main").write_text("../../../etc")
    assert cached_snapshot("org/name") is None


def test_a_pipeline_is_here_when_all_its_parts_are() -> None:
    cache = put("org/name", PIPELINE)
    assert is_here(HubFiles.of("org/name"))
    (cache.folder / "snapshots" / COMMIT / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert not is_here(HubFiles.of("org/name"))


def test_missing_files_are_named() -> None:
    assert lacks(HubFiles.of("org/name")) == EVERYTHING
    cache = put("org/name", PIPELINE)
    assert lacks(HubFiles.of("org/name")) is None
    snapshot = cache.folder / "snapshots" / COMMIT
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert lacks(HubFiles.of("org/name")) == "vae"
    assert lacks(HubFiles.of("org/name", without=("vae",))) is None
    (snapshot / INDEX).unlink()
    assert lacks(HubFiles.of("org/name")) == INDEX
    assert lacks(HubFiles.of("org/name", files=("a.gguf",))) == "a.gguf"


def test_a_link_to_nothing_is_no_file() -> None:
    cache = put("org/name", PIPELINE)
    cache.blob(f"{1:040}").unlink()
    assert not is_here(HubFiles.of("org/name"))


@pytest.mark.parametrize("index", ["", "[1]", "[" * 100_000])
def test_a_broken_index_is_no_pipeline(index: str) -> None:
    put("org/name", {"model_index.json": index})
    assert not is_here(HubFiles.of("org/name"))


def test_single_files_are_here_one_by_one() -> None:
    put("org/name", {"a.gguf": "x"})
    assert is_here(HubFiles.of("org/name", files=("a.gguf",)))
    assert not is_here(HubFiles.of("org/name", files=("a.gguf", "b.gguf")))


def test_an_entry_needs_what_neither_its_folder_nor_the_cache_has(tmp_path: Path) -> None:
    spec = entry(hf_path="org/name", local_path="mine")
    assert missing(spec, tmp_path) == (HubFiles(repo="org/name"),)
    (tmp_path / "mine").mkdir()
    assert missing(spec, tmp_path) == ()
    put("org/name", PIPELINE)
    assert missing(entry(hf_path="org/name"), tmp_path) == ()


def test_a_quantised_entry_still_needs_its_base_model(tmp_path: Path) -> None:
    spec = GGUFSpec(
        name="A", type="gguf", local_path="a.gguf", base_model="org/base", hf_path="org/gguf", gguf_file="a.gguf"
    )
    base = HubFiles(repo="org/base", without=("transformer",))
    assert missing(spec, tmp_path) == (HubFiles(repo="org/gguf", files=("a.gguf",)), base)
    (tmp_path / "a.gguf").touch()
    assert missing(spec, tmp_path) == (base,)
    (tmp_path / "org" / "base" / "vae").mkdir(parents=True)
    assert missing(spec, tmp_path) == (base,)
    for name, content in PIPELINE.items():
        (tmp_path / "org" / "base" / name).write_text(content)
    assert missing(spec, tmp_path) == ()


FOUR_BITS = {
    "name": "A",
    "type": "nunchaku",
    "hf_path": "org/four",
    "weight_name": "svdq-{precision}.safetensors",
    "base_model": "builtin:tiny",
}


def test_of_the_files_for_several_cards_the_one_for_this_card_is_needed(tmp_path: Path) -> None:
    spec = NunchakuSpec.model_validate(FOUR_BITS)
    (unknown,) = missing(spec, tmp_path)
    assert dict(unknown.by_precision) == {"int4": "svdq-int4.safetensors", "fp4": "svdq-fp4.safetensors"}
    for precision in ("int4", "fp4"):
        (needed,) = missing(spec, tmp_path, precision)
        assert (needed.files, needed.by_precision) == ((f"svdq-{precision}.safetensors",), ())
    put("org/four", {"svdq-fp4.safetensors": ""})
    assert weights_here(spec, tmp_path)
    assert weights_here(spec, tmp_path, "fp4")
    assert not weights_here(spec, tmp_path, "int4")


def test_whether_an_entry_can_be_loaded(tmp_path: Path) -> None:
    assert weights_here(entry(), tmp_path)
    assert weights_here(entry(local_path="builtin:tiny"), tmp_path)
    assert not weights_here(entry(local_path="nowhere"), tmp_path)
    assert not weights_here(entry(hf_path="org/name"), tmp_path)


def test_a_folder_that_is_missing_is_not_made_up_for_by_a_lora(tmp_path: Path) -> None:
    put("org/lora", {"a.safetensors": ""})
    loras = [{"repo": "org/lora", "path": "a.safetensors"}]
    spec = FluxSpec.model_validate({"name": "A", "type": "flux", "local_path": "nowhere", "loras": loras})
    assert missing(spec, tmp_path) == ()
    assert not weights_here(spec, tmp_path)
    (tmp_path / "nowhere" / "vae").mkdir(parents=True)
    (tmp_path / "nowhere" / INDEX).write_text(PIPELINE[INDEX])
    assert not weights_here(spec, tmp_path)
    (tmp_path / "nowhere" / "vae" / "diffusion_pytorch_model.safetensors").touch()
    assert weights_here(spec, tmp_path)
