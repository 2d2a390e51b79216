"""The Catalog: frozen values and their lookups."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from imagegen.builtin import default_config
from imagegen.catalog.catalog import RESERVED_IDS, Catalog, GlobalSettings, ModelId, ModelSpec
from imagegen.catalog.changes import Roots
from imagegen.catalog.fields import HubSource
from imagegen.catalog.loading import load_catalog
from imagegen.catalog.sources import local_folder
from imagegen.core.errors import ModelNotFound, PathNotAllowed
from imagegen.loaders.flux import FluxSpec
from imagegen.testing import FAMILIES, SPECS
from imagegen.testing.fake import FakeSpec

MODEL_ID: TypeAdapter[str] = TypeAdapter(ModelId)
HUB_SOURCE: TypeAdapter[str] = TypeAdapter(HubSource)


def spec(**fields: Any) -> FakeSpec:
    return FakeSpec.model_validate({"name": "A", "type": "fake", **fields})


def catalog(settings: dict[str, Any] | None = None, **models: ModelSpec) -> Catalog:
    return Catalog(settings=GlobalSettings.model_validate(settings or {}), models=models)


# -- defaults ----------------------------------------------------------------------------------------------------------


def test_the_first_entry_is_the_default_model() -> None:
    assert catalog(b=spec(), a=spec()).default_model == "b"


def test_default_model_names_another_one() -> None:
    assert catalog({"default_model": "a"}, b=spec(), a=spec()).default_model == "a"


def test_the_default_base_size_is_768_pixels() -> None:
    assert spec().base_size == 768


def test_a_model_is_unloaded_after_half_an_hour_by_default() -> None:
    assert catalog(a=spec()).idle_minutes("a") == 30


def test_the_original_api_enables_both_by_default() -> None:
    assert spec().supports_text2img
    assert spec().supports_img2img


# -- what older files say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["hf_path", "huggingface_path"])
@pytest.mark.parametrize("path", ["path/to/model", "model", "a/b/c/d"])
def test_a_relative_path_of_other_than_two_segments_is_a_folder_below_the_models_directory(key: str, path: str) -> None:
    entry = FluxSpec.model_validate({"name": "A", "type": "flux", key: path})
    assert (entry.hf_path, entry.local_path) == (None, path)
    assert local_folder(entry, Path("models")) == Path("models") / path


def test_two_segments_are_a_repository_and_anything_else_is_neither() -> None:
    assert FluxSpec.model_validate({"name": "A", "type": "flux", "hf_path": "org/name@v1"}).hf_path == "org/name@v1"
    for source in ("/etc/model", "../a/b", "https://h/a/b", "a/b/c@v1", "~/a/b", ""):
        with pytest.raises(ValidationError):
            FluxSpec.model_validate({"name": "A", "type": "flux", "hf_path": source})


def test_over_http_such_a_path_lies_below_the_roots_like_every_path(tmp_path: Path) -> None:
    Roots(tmp_path, (tmp_path,)).check(FluxSpec, {"hf_path": "path/to/model"})
    for path in ("a/../../b", "link/a/b"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("/etc")
        with pytest.raises(PathNotAllowed):
            Roots(tmp_path, (tmp_path,)).check(FluxSpec, {"hf_path": path})


SCHNELL = {"name": "A", "type": "flux", "hf_path": "black-forest-labs/FLUX.1-schnell"}


def numbers(entry: dict[str, Any]) -> tuple[int, float, int]:
    spec = SPECS[entry["type"]].model_validate(entry)
    return (spec.steps, spec.guidance_scale, spec.base_size)


def test_an_entry_takes_the_shipped_numbers_of_its_repository_where_it_has_none() -> None:
    assert numbers(SCHNELL) == (4, 0, 1024)
    assert numbers({**SCHNELL, "hf_path": "black-forest-labs/FLUX.1-schnell@v1"}) == (4, 0, 1024)
    assert numbers({**SCHNELL, "steps": 8, "base_size": 768}) == (8, 0, 768)
    assert numbers({**SCHNELL, "hf_path": "org/name"}) == (28, 3.5, 768)
    of_the_base = {"type": "gguf", "hf_path": "org/gguf", "gguf_file": "a.gguf", "base_model": SCHNELL["hf_path"]}
    assert numbers(SCHNELL | of_the_base) == (4, 0, 1024)


def test_the_shipped_entries_follow_the_model_cards() -> None:
    models = load_catalog(default_config(), SPECS).models
    assert models["qwen-image"].base_size == 1328
    edit = models["qwen-image-edit"]
    assert (edit.hf_path, edit.pipeline_class) == ("Qwen/Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline")
    before = default_config().read_text().partition("  qwen-image-edit:")[0].rstrip().splitlines()[-1]
    assert "torchvision" in before


# -- idle minutes ------------------------------------------------------------------------------------------------------


def test_a_models_own_minutes_go_before_the_global_ones() -> None:
    both = catalog({"auto_unload_minutes": 5}, a=spec(auto_unload_minutes=90), b=spec())
    assert (both.idle_minutes("a"), both.idle_minutes("b")) == (90, 5)


def test_a_model_can_stay_for_ever_while_others_leave() -> None:
    assert catalog({"auto_unload_minutes": 5}, a=spec(auto_unload_minutes=0)).idle_minutes("a") == 0


# -- looking up --------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        catalog(a=spec()).model("b")


def test_the_order_of_the_file_is_kept() -> None:
    assert list(catalog(z=spec(), a=spec(), m=spec()).models) == ["z", "a", "m"]


# -- frozen ------------------------------------------------------------------------------------------------------------


def test_a_catalog_cannot_be_changed() -> None:
    read = catalog(a=spec())
    with pytest.raises(TypeError):
        read.models["b"] = spec()  # type: ignore[index]
    with pytest.raises(ValidationError):
        read.models["a"].steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        read.settings.auto_unload_minutes = 3  # type: ignore[misc]


def test_a_catalog_does_not_follow_the_mapping_it_was_made_from() -> None:
    models: dict[str, ModelSpec] = {"a": spec()}
    read = Catalog(settings=GlobalSettings(), models=models)
    models["b"] = spec()
    assert list(read.models) == ["a"]


# -- ids and sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_id", ["a", "flux.1-schnell", "SD_3.5", "0", "x" * 64])
def test_ids_are_names_that_fit_a_url_and_a_file_name(model_id: str) -> None:
    assert MODEL_ID.validate_python(model_id) == model_id


@pytest.mark.parametrize("model_id", ["", ".", "..", "-a", ".a", "a b", "a/b", "a\n", "ä", "%2e", "x" * 65, "a\0"])
def test_a_model_id_has_no_special_characters_of_a_path(model_id: str) -> None:
    with pytest.raises(ValidationError):
        MODEL_ID.validate_python(model_id)


@given(st.text(max_size=70))
def test_an_id_never_leaves_its_folder(text: str) -> None:
    try:
        MODEL_ID.validate_python(text)
    except ValidationError:
        return
    assert text not in (".", "..")
    assert not set(text) & set("/\\\0\n%")


def test_words_of_the_url_space_are_reserved() -> None:
    assert {"current", "unload"} <= RESERVED_IDS


@pytest.mark.parametrize("source", ["org/name", "org/name@main", "black-forest-labs/FLUX.1-dev@0ef5fff7"])
def test_a_hub_source_is_an_organisation_and_a_name(source: str) -> None:
    assert HUB_SOURCE.validate_python(source) == source


@pytest.mark.parametrize(
    "source", ["name", "https://example.org/a", "../etc/passwd", "/etc/passwd", "a/b/c", "a/b@", "a/b\n", "a/../b", ""]
)
def test_a_hub_source_is_no_url_and_no_path(source: str) -> None:
    with pytest.raises(ValidationError):
        HUB_SOURCE.validate_python(source)


@pytest.mark.parametrize("source", ["org/a--b", "org/a..b", "org/a-", "org/a.git", "org/" + "a" * 97])
def test_a_source_with_an_invalid_hub_name_is_a_problem_of_the_file(source: str) -> None:
    with pytest.raises(ValidationError):
        HUB_SOURCE.validate_python(source)


# -- what an entry may say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"steps": 201},
        {"base_size": 63},
        {"base_size": 2049},
        {"guidance_scale": -0.1},
        {"guidance_scale": float("nan")},
        {"auto_unload_minutes": -1},
        {"auto_unload_minutes": float("inf")},
        {"torch_dtype": "float8"},
        {"memory_usage": "huge"},
        {"name": ""},
        {"local_path": ""},
        {"custom_pipeline": "evil"},
        {"trust_remote_code": True},
    ],
)
def test_an_entry_is_refused_for_what_is_out_of_bounds_or_unknown(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_the_share_of_the_device_is_above_zero_and_at_most_one(fraction: float) -> None:
    with pytest.raises(ValidationError):
        GlobalSettings(gpu_memory_fraction=fraction)


def test_the_pipeline_of_a_flux_model_is_not_a_free_choice() -> None:
    flux = {"name": "A", "type": "flux", "local_path": "a"}
    assert SPECS["flux"].model_validate(flux).pipeline_class == "FluxPipeline"
    with pytest.raises(ValidationError):
        SPECS["flux"].model_validate({**flux, "pipeline_class": "utils"})


def test_every_family_reads_back_what_it_dumps() -> None:
    # An entry crosses to the worker as its dump.
    for word, family in FAMILIES.items():
        needed = {"diffusers": {"pipeline_class": "SanaPipeline"}, "fake": {}, "flux": {}, "stable_diffusion": {}}
        more = needed.get(word, {"base_model": "org/base@v1"})
        entry = family.spec.model_validate(
            {"name": "A", "type": word, "huggingface_path": "org/name", "local_path": "a", **more}
        )
        assert family.spec.model_validate(entry.model_dump(mode="json")) == entry
