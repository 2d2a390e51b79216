"""`parts` of an entry: the allowed values, the files that are pulled, and when they count as present."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from imagegen.builtin import builtin_model
from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.changes import Roots
from imagegen.catalog.sources import missing, weights_here
from imagegen.core.errors import PathNotAllowed
from imagegen.loaders.flux import FluxSpec
from imagegen.loaders.gguf import GGUFSpec
from imagegen.loaders.stable_diffusion import StableDiffusionSpec

SD3 = {"name": "A", "type": "stable_diffusion", "hf_path": "org/sd3"}


def sd3(parts: dict[str, Any], **fields: Any) -> StableDiffusionSpec:
    return StableDiffusionSpec.model_validate({**SD3, "parts": parts, **fields})


def test_a_part_that_is_left_out_is_not_fetched_nor_is_its_tokenizer() -> None:
    (pipeline,) = sd3({"text_encoder_3": None}).hub_files()
    assert set(pipeline.without) == {"text_encoder_3", "tokenizer_3"}


def test_a_part_from_another_repository_is_fetched_instead() -> None:
    files = sd3({"vae": "org/vae@v2"}, torch_dtype="float16").hub_files()
    assert files == (
        HubFiles(repo="org/sd3", without=("vae",), dtype="float16"),
        HubFiles(repo="org/vae", revision="v2", part="vae", dtype="float16"),
    )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"vae": None}, "needs 'vae'; it can do without text_encoder_3, image_encoder, feature_extractor"),
        ({"tokenizer_3": None}, "needs 'tokenizer_3'"),
        ({"vae": "https://example.org/vae"}, "not a URL"),
        ({"../vae": "org/vae"}, "must be the name of a part"),
        ({"vae": 7}, "valid string"),
    ],
)
def test_an_unknown_part_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        sd3(parts)


def test_of_a_quantised_model_the_transformer_is_its_own_file() -> None:
    entry = {"name": "A", "type": "gguf", "local_path": "a.gguf", "base_model": "org/base"}
    with pytest.raises(ValidationError, match="the transformer is the file that the entry names"):
        GGUFSpec.model_validate({**entry, "parts": {"transformer": "org/t"}})
    (base, vae) = GGUFSpec.model_validate({**entry, "parts": {"vae": "org/vae"}}).hub_files()
    assert set(base.without) == {"transformer", "vae"}
    assert vae == HubFiles(repo="org/vae", part="vae")


def test_a_rounded_transformer_is_the_pipelines_own() -> None:
    with pytest.raises(ValidationError, match="contradict"):
        sd3({"transformer": "org/t"}, quantize="int8")


def test_an_entry_with_a_missing_part_counts_as_missing(tmp_path: Path) -> None:
    entry = {"name": "A", "type": "flux", "local_path": "builtin:tiny"}
    assert not weights_here(FluxSpec.model_validate({**entry, "parts": {"vae": "my/own/vae"}}), tmp_path)
    hub = FluxSpec.model_validate({**entry, "parts": {"vae": "imagegen-tests/in-nobodys-cache"}})
    assert missing(hub, tmp_path) == (HubFiles(repo="imagegen-tests/in-nobodys-cache", part="vae"),)
    (tmp_path / "my" / "own").mkdir(parents=True)
    (tmp_path / "my" / "own" / "vae").symlink_to(builtin_model("tiny") / "vae")
    assert weights_here(FluxSpec.model_validate({**entry, "parts": {"vae": "my/own/vae"}}), tmp_path)


def test_over_http_a_part_lies_below_the_roots_like_every_path(tmp_path: Path) -> None:
    roots = Roots(tmp_path, (tmp_path,))
    roots.check(StableDiffusionSpec, {**SD3, "parts": {"vae": "mine", "text_encoder_3": None, "unet": "org/name"}})
    for path in ("/etc", "../outside", "~/vae"):
        with pytest.raises(PathNotAllowed, match=r"^parts\.vae:"):
            roots.check(StableDiffusionSpec, {**SD3, "parts": {"vae": path}})
