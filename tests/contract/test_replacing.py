"""Parts of a pipeline that an entry replaces or leaves out, and parts that its folder does not have."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generated, Loaded
from tests.conftest import load_command
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, draw, run, shelf_of

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), ["sd3"]) as shelf:
        home = shelf.folder
        shutil.copytree(home / "sd3", home / "nulls")
        index = json.loads((home / "nulls" / "model_index.json").read_text())
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        (home / "nulls" / "model_index.json").write_text(json.dumps(index))
        shutil.copytree(home / "sd3", home / "deleted")
        shutil.rmtree(home / "deleted" / "text_encoder_3")
        shutil.rmtree(home / "nulls" / "text_encoder_3")
        # Another autoencoder: as one part, as the part of a pipeline, and the same one again.
        shutil.copytree(home / "sd3" / "vae", home / "vae")
        weights = load_file(home / "vae" / "diffusion_pytorch_model.safetensors")
        save_file({name: -it for name, it in weights.items()}, home / "vae" / "diffusion_pytorch_model.safetensors")
        shutil.copytree(home / "sd3", home / "other")
        shutil.rmtree(home / "other" / "vae")
        shutil.copytree(home / "vae", home / "other" / "vae")
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


def load(engine: LocalEngine, shelf: Shelf, **fields: Any) -> Loaded | Failed:
    catalog = catalog_of(m=shelf.entry("sd3") | fields)
    return engine.load(load_command(catalog, "m", shelf.folder))


def drawn(engine: LocalEngine, shelf: Shelf, **fields: Any) -> Any:
    assert isinstance(outcome := load(engine, shelf, **fields), Loaded), outcome
    return draw(engine, "m", seed=3)


def without_t5(engine: LocalEngine, shelf: Shelf) -> Any:
    return drawn(engine, shelf, parts={"text_encoder_3": None})


def test_an_entry_can_leave_t5_out(engine: LocalEngine, shelf: Shelf) -> None:
    whole = drawn(engine, shelf)
    with_t5 = load(engine, shelf)
    assert not np.array_equal(whole, without_t5(engine, shelf))
    left = load(engine, shelf, parts={"text_encoder_3": None})
    assert isinstance(with_t5, Loaded)
    assert isinstance(left, Loaded)
    assert left.weight_bytes < with_t5.weight_bytes
    outcome = run(engine, "m")
    assert isinstance(outcome, Generated)
    assert outcome.provenance.options["parts"] == {"text_encoder_3": None}
    assert outcome.warnings == ()


def test_a_pipeline_that_was_saved_without_it_draws_the_same(engine: LocalEngine, shelf: Shelf) -> None:
    assert np.array_equal(drawn(engine, shelf, local_path="nulls"), without_t5(engine, shelf))


def test_a_pipeline_with_a_deleted_part_draws_the_same_with_a_warning(engine: LocalEngine, shelf: Shelf) -> None:
    expected = without_t5(engine, shelf)
    assert np.array_equal(drawn(engine, shelf, local_path="deleted"), expected)
    outcome = run(engine, "m")
    assert isinstance(outcome, Generated)
    assert outcome.warnings == (("The model's folder has no 'text_encoder_3': the pictures are made without it.",),)


def test_a_part_from_elsewhere_counts_wherever_it_lies(engine: LocalEngine, shelf: Shelf) -> None:
    own = drawn(engine, shelf)
    assert np.array_equal(drawn(engine, shelf, parts={"vae": "sd3"}), own)
    other = drawn(engine, shelf, parts={"vae": "vae"})
    assert not np.array_equal(other, own)
    assert np.array_equal(drawn(engine, shelf, parts={"vae": "other"}), other)
    outcome = run(engine, "m")
    assert isinstance(outcome, Generated)
    assert len(outcome.provenance.weights) == 2


def test_the_parts_of_the_folder_need_not_be_there_then(engine: LocalEngine, shelf: Shelf, tmp_path: Path) -> None:
    shutil.copytree(shelf.model("sd3"), tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / "vae")
    path = str(tmp_path / "sd3")
    missing = load(engine, shelf, local_path=path)
    assert isinstance(missing, Failed)
    assert missing.code is FailureCode.WEIGHTS_MISSING
    assert np.array_equal(drawn(engine, shelf, local_path=path, parts={"vae": "sd3"}), drawn(engine, shelf))


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ({"vae": "nowhere"}, FailureCode.WEIGHTS_MISSING, "'vae' is not on this machine, or incomplete: 'nowhere'"),
        ({"watermark": "vae"}, FailureCode.WEIGHTS_REFUSED, "StableDiffusion3Pipeline has no part 'watermark'"),
        ({"vae": "evil"}, FailureCode.WEIGHTS_REFUSED, "is a DiffusionPipeline, which is no part"),
    ],
)
def test_a_class_that_cannot_be_a_part_is_refused(
    engine: LocalEngine, shelf: Shelf, parts: dict[str, str], code: FailureCode, words: str
) -> None:
    if not (shelf.folder / "evil").exists():
        shutil.copytree(shelf.folder / "vae", shelf.folder / "evil")
        (shelf.folder / "evil" / "config.json").write_text('{"_class_name": "DiffusionPipeline"}')
    failed = load(engine, shelf, parts=parts)
    assert isinstance(failed, Failed)
    assert failed.code is code
    assert words in failed.message
