"""The table of pipelines agrees with the installed diffusers."""

import inspect
import re
from contextlib import suppress

import diffusers
import pytest
from pydantic import ValidationError

from imagegen.loaders import FAMILIES
from imagegen.loaders.flux import FluxSpec
from imagegen.loaders.pipelines import PIPELINES, PipelineKind

#: Pipelines whose sibling is there and does not run: test_families draws with all that are in the table.
BROKEN = {"ChromaPipeline"}


def parameters(name: str) -> set[str]:
    pipeline = getattr(diffusers, name)
    assert issubclass(pipeline, diffusers.DiffusionPipeline)
    return set(inspect.signature(pipeline.__call__).parameters)


@pytest.mark.parametrize(("name", "kind"), PIPELINES.items(), ids=PIPELINES)
def test_each_line_holds(name: str, kind: PipelineKind) -> None:
    parameters(name)
    everywhere = {"prompt", "num_inference_steps", "generator", "output_type", "callback_on_step_end"}
    for task, needs in (("text2image", set()), ("image2image", {"image"}), ("inpaint", {"image", "mask_image"})):
        member = getattr(kind, task)
        if member is not None:
            assert everywhere | needs <= parameters(member), task
            assert kind.guidance in parameters(member) | {"guidance_scale"}
    main = kind.text2image or kind.image2image or kind.inpaint
    assert main is not None
    assert kind.negative_prompt == ("negative_prompt" in parameters(main))
    assert kind.lora == hasattr(getattr(diffusers, main), "load_lora_weights")
    assert kind.guidance in parameters(main)
    if kind.image2image is not None:
        assert kind.strength == ("strength" in parameters(kind.image2image))


def test_no_sibling_that_diffusers_has_is_left_out() -> None:
    from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as IMAGE
    from diffusers.pipelines.auto_pipeline import AUTO_INPAINT_PIPELINES_MAPPING as INPAINT
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as TEXT

    for family, pipeline in TEXT.items():
        kind = PIPELINES.get(pipeline.__name__)
        if kind is not None and family in IMAGE:
            assert kind.image2image == IMAGE[family].__name__
        if kind is not None and family in INPAINT and pipeline.__name__ not in BROKEN:
            assert kind.inpaint == INPAINT[family].__name__


HOSTILE = ["", "__class__", "utils", "os.system", "FluxPipeline.__init__", "FluxPipeline\0", "\uff26luxPipeline"]


@pytest.mark.parametrize("word", FAMILIES)
def test_no_other_name_of_diffusers_is_a_pipeline_class(word: str) -> None:
    own = {} if word in ("flux", "stable_diffusion", "diffusers") else {"base_model": "org/base"}
    entry = {"name": "A", "type": word, "hf_path": "org/name", "local_path": "a", **own}
    taken = set()
    for name in [*dir(diffusers), *HOSTILE]:
        with suppress(ValidationError):
            taken.add(FAMILIES[word].spec.model_validate(entry | {"pipeline_class": name}).pipeline_class)
    assert taken
    assert taken <= set(PIPELINES)


@pytest.mark.parametrize(("name", "kind"), PIPELINES.items(), ids=PIPELINES)
def test_the_most_tokens_are_those_that_the_classes_check(name: str, kind: PipelineKind) -> None:
    found = set()
    for member in filter(None, (kind.text2image, kind.image2image, kind.inpaint)):
        check = getattr(getattr(diffusers, member), "check_inputs", None)
        if check is not None:
            found |= set(re.findall(r"max_sequence_length > (\d+)", inspect.getsource(check)))
    assert found == ({str(kind.max_tokens)} if kind.max_tokens else set())


def test_more_tokens_than_the_class_takes_are_an_error_of_the_entry() -> None:
    entry = {"name": "A", "type": "flux", "pipeline_class": "FluxKontextPipeline", "local_path": "kontext"}
    assert FluxSpec.model_validate(entry | {"max_sequence_length": 512}).max_sequence_length == 512
    with pytest.raises(ValidationError, match="FluxKontextPipeline takes at most 512 tokens"):
        FluxSpec.model_validate(entry | {"max_sequence_length": 513})


@pytest.mark.parametrize(("name", "kind"), PIPELINES.items(), ids=PIPELINES)
def test_the_tokens_are_those_that_the_class_reads_by_default(name: str, kind: PipelineKind) -> None:
    main = kind.text2image or kind.image2image or kind.inpaint
    parameters = inspect.signature(getattr(diffusers, str(main)).__call__).parameters
    if kind.tokens is not None and "max_sequence_length" in parameters:
        assert parameters["max_sequence_length"].default == kind.tokens
    assert (kind.tokens == 77) == name.startswith(("StableDiffusionXL", "StableDiffusionP", "StableDiffusionI"))
