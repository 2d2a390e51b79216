"""Admission: it completes a request, checks its limits, and reports the reason of a refusal."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.catalog.catalog import Catalog, GlobalSettings, ModelSpec
from imagegen.core.errors import InvalidRequest, ModelNotFound, SizeTooLarge, TaskTooLong, UnsupportedCapability
from imagegen.core.sizes import AspectRatio, Size
from imagegen.core.task import MAX_SEED, GenerationRequest, InputPictures, Lora, TaskType
from imagegen.loaders.flux import FluxSpec
from imagegen.loaders.other import OtherSpec
from imagegen.loaders.stable_diffusion import StableDiffusionSpec
from imagegen.tasks.admission import Limits, TaskDraft, admit, check_time
from imagegen.testing.fake import FakeSpec

LIMITS = Limits(max_queue=10, max_batch_size=4, max_pixels=2048 * 2048)


def fake(**fields: Any) -> FakeSpec:
    return FakeSpec.model_validate({"name": "A", "type": "fake", **fields})


def negative(**fields: Any) -> StableDiffusionSpec:
    """An entry that takes a negative prompt."""
    return StableDiffusionSpec.model_validate({"name": "XL", "type": "stable_diffusion", "local_path": "xl", **fields})


def catalog(default: str | None = None, **models: ModelSpec) -> Catalog:
    return Catalog(settings=GlobalSettings(default_model=default), models=models or {"a": fake()})


def draft(**fields: Any) -> TaskDraft:
    return TaskDraft.model_validate({"type": TaskType.TEXT2IMAGE, "prompt": "a cat", **fields})


def no_seed() -> NoReturn:
    raise AssertionError("a seed was drawn though one was given")


def admitted(
    asked: TaskDraft,
    models: Catalog | None = None,
    *,
    limits: Limits = LIMITS,
    new_seed: Callable[[], int] = lambda: 99,
    **known: Any,
) -> tuple[str, GenerationRequest]:
    return admit(asked, models or catalog(), limits, new_seed, **known)


def request(asked: TaskDraft, models: Catalog | None = None, **known: Any) -> GenerationRequest:
    return admitted(asked, models, **known)[1]


def refused_for_its_time(models: Catalog, asked: TaskDraft, least_s: float | None, **limits: Any) -> str | None:
    """The reason; None: it is accepted."""
    try:
        check_time("a", request(asked, models), models, LIMITS.evolve(**limits), least_s)
    except TaskTooLong as error:
        return error.detail
    return None


# -- defaults ----------------------------------------------------------------------------------------------------------


def test_omitted_fields_take_the_models_defaults() -> None:
    models = catalog(a=fake(steps=12, guidance_scale=1.5, base_size=512))
    assert request(draft(), models) == GenerationRequest(
        prompt="a cat", width=512, height=512, steps=12, guidance_scale=1.5, seed=99
    )


def test_given_fields_override_the_models_defaults() -> None:
    asked = draft(steps=3, guidance_scale=7.5, seed=11, width=100, height=60, batch_size=2)
    assert request(asked, catalog(a=fake(steps=12, guidance_scale=1.5))) == GenerationRequest(
        prompt="a cat", width=100, height=60, steps=3, guidance_scale=7.5, seed=11, batch_size=2
    )


def test_zero_is_something_that_was_said() -> None:
    asked = draft(seed=0, guidance_scale=0)
    complete = admitted(asked, catalog(a=fake(guidance_scale=3.5)), new_seed=no_seed)[1]
    assert (complete.seed, complete.guidance_scale) == (0, 0)


def test_no_seed_is_drawn_where_one_was_given() -> None:
    assert admitted(draft(seed=5), new_seed=no_seed)[1].seed == 5


def test_a_request_without_a_model_uses_the_default_one() -> None:
    assert admitted(draft(), catalog("b", a=fake(), b=fake()))[0] == "b"
    assert admitted(draft(), catalog(None, a=fake(), b=fake()))[0] == "a"


def test_the_strength_of_an_image_to_image_request_is_kept() -> None:
    assert request(draft(type=TaskType.IMAGE2IMAGE, strength=0.35)).strength == 0.35


# -- sizes -------------------------------------------------------------------------------------------------------------

SIZES: dict[int, dict[AspectRatio, tuple[int, int]]] = {
    768: {
        "1:1": (768, 768),
        "16:9": (1365, 768),
        "9:16": (768, 1365),
        "4:3": (1024, 768),
        "3:4": (768, 1024),
        "21:9": (1792, 768),
        "9:21": (768, 1792),
    },
    1024: {
        "1:1": (1024, 1024),
        "16:9": (1820, 1024),
        "9:16": (1024, 1820),
        "4:3": (1365, 1024),
        "3:4": (1024, 1365),
        "21:9": (2389, 1024),
        "9:21": (1024, 2389),
    },
    128: {
        "1:1": (128, 128),
        "16:9": (228, 128),
        "9:16": (128, 228),
        "4:3": (171, 128),
        "3:4": (128, 171),
        "21:9": (299, 128),
        "9:21": (128, 299),
    },
}


@pytest.mark.parametrize("base", SIZES)
def test_a_ratio_gives_exactly_the_size_of_the_table_scaled_to_the_models_base(base: int) -> None:
    models = catalog(a=fake(base_size=base))
    assert {ratio: request(draft(aspect_ratio=ratio), models).size for ratio in SIZES[base]} == SIZES[base]


def test_a_model_with_an_area_gets_no_more_pixels() -> None:
    models = catalog(a=fake(base_size=1024, sizing="area"))
    assert request(draft(aspect_ratio="21:9"), models).size == (1568, 672)
    assert request(draft(), models).size == (1024, 1024)


def test_the_shipped_models_for_a_megapixel_render_one(shipped: Catalog) -> None:
    for name, spec in shipped.models.items():
        if spec.supports_text2img and name != "tiny":
            size = request(draft(model=name, aspect_ratio="21:9"), shipped).size
            assert size.pixels == pytest.approx(spec.base_size**2, rel=0.03), name


def test_width_and_height_go_before_the_ratio() -> None:
    assert request(draft(width=300, height=200, aspect_ratio="9:16")).size == (300, 200)


def edit(**fields: Any) -> TaskDraft:
    return draft(type=TaskType.IMAGE2IMAGE, **fields)


PORTRAIT = Size(3024, 4032)


@pytest.mark.parametrize("fields", [{}, {"aspect_ratio": "input"}])
def test_a_portrait_stays_one(fields: dict[str, Any]) -> None:
    assert request(edit(**fields), catalog(a=fake(base_size=1024)), input_size=PORTRAIT).size == (880, 1184)


def test_both_sides_are_multiples_of_what_the_model_needs() -> None:
    entry = {"name": "A", "type": "diffusers", "pipeline_class": "SanaSprintPipeline", "base_size": 1024}
    entry["local_path"] = "sana"
    assert request(edit(), catalog(a=OtherSpec.model_validate(entry)), input_size=PORTRAIT).size == (896, 1184)


def test_a_requested_shape_or_size_is_used() -> None:
    assert request(edit(aspect_ratio="1:1"), input_size=PORTRAIT).size == (768, 768)
    assert request(edit(width=300, height=200), input_size=PORTRAIT).size == (300, 200)


def test_a_plan_without_a_picture_counts_with_a_square() -> None:
    assert request(draft(type=TaskType.IMAGE2IMAGE)).size == (768, 768)


def test_the_shape_of_an_input_needs_an_input() -> None:
    with pytest.raises(InvalidRequest, match="text2image has none"):
        admitted(draft(aspect_ratio="input"))
    assert request(draft()).size == (768, 768)


def test_a_shape_taken_from_the_input_is_never_too_large() -> None:
    limits = LIMITS.evolve(max_pixels=500_000)
    models = catalog(a=fake(base_size=1024))
    assert admitted(edit(), models, limits=limits, input_size=PORTRAIT)[1].size.pixels <= 500_000


@pytest.mark.parametrize("fields", [{"width": 64}, {"height": 64}])
def test_width_and_height_go_together(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="width and height"):
        admitted(draft(**fields))


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_picture_may_have_as_many_pixels_as_the_limit_and_not_one_more() -> None:
    limits = LIMITS.evolve(max_pixels=6400)
    assert admitted(draft(width=80, height=80), limits=limits)[1].size == (80, 80)
    with pytest.raises(SizeTooLarge, match="81x80 is more than 6400 pixels"):
        admitted(draft(width=81, height=80), limits=limits)


def test_a_side_longer_than_the_model_can_draw_is_refused_with_the_number() -> None:
    assert request(draft(width=1024, height=16), longest_side=1024).width == 1024
    for width in (1025, 1030):
        with pytest.raises(SizeTooLarge, match="'a' makes pictures of at most 1024 pixels a side; "):
            admitted(draft(width=width, height=16), longest_side=1024)


def test_the_shape_of_an_input_keeps_to_what_the_model_can_draw() -> None:
    models = catalog(a=fake(base_size=1024))
    assert request(edit(), models, input_size=Size(4000, 1000), longest_side=1024).size == (1024, 512)


def test_the_limit_holds_for_ratios_too() -> None:
    with pytest.raises(SizeTooLarge):
        admitted(draft(aspect_ratio="21:9"), catalog(a=fake(base_size=2048)))


@pytest.mark.parametrize("batch_size", [5, 10**9])
def test_a_batch_over_the_limit_is_refused_with_the_limit(batch_size: int) -> None:
    with pytest.raises(InvalidRequest, match="at most 4 pictures"):
        admitted(draft(batch_size=batch_size))


def test_a_batch_at_the_limit_is_accepted() -> None:
    assert request(draft(batch_size=4)).batch_size == 4


# -- models ------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match="known: b, a"):
        admitted(draft(model="c"), catalog(b=fake(), a=fake()))


@pytest.mark.parametrize(
    ("kind", "lacking"), [(TaskType.TEXT2IMAGE, "supports_text2img"), (TaskType.IMAGE2IMAGE, "supports_img2img")]
)
def test_an_unsupported_request_names_the_models_that_support_it(kind: TaskType, lacking: str) -> None:
    models = catalog(a=fake(**{lacking: False}), b=fake(), c=fake(**{lacking: False}), d=fake())
    with pytest.raises(UnsupportedCapability, match=rf"'a' cannot do {kind}; these can: b, d\."):
        admitted(draft(type=kind, model="a"), models)
    assert admitted(draft(type=kind, model="b"), models)[0] == "b"


def test_where_no_model_can_that_is_said() -> None:
    with pytest.raises(UnsupportedCapability, match="these can: none"):
        admitted(draft(type=TaskType.IMAGE2IMAGE), catalog(a=fake(supports_img2img=False)))


def test_a_negative_prompt_is_not_silently_ignored() -> None:
    edit = negative(supports_text2img=False)
    models = catalog("a", a=fake(), edit=edit, xl=negative())
    with pytest.raises(UnsupportedCapability, match=r"'a' takes no negative_prompt; these can: xl\.$"):
        admitted(draft(negative_prompt="blurry"), models)


def test_an_empty_negative_prompt_asks_for_nothing() -> None:
    assert not request(draft(negative_prompt="")).negative_prompt


def test_a_lora_is_kept_where_the_model_takes_one_and_refused_elsewhere() -> None:
    ink = Lora(path="ink.safetensors", scale=0.4)
    asked = draft(loras=(ink,))
    assert request(asked, catalog(a=FluxSpec(name="A", type="flux", local_path="a"))).loras == (ink,)
    models = catalog("a", a=fake(), b=FluxSpec(name="B", type="flux", local_path="b"), c=fake())
    with pytest.raises(UnsupportedCapability, match=r"'a' takes no LoRA; these can: b\.$"):
        admitted(asked, models)
    # A key learns only of the models that it may use.
    with pytest.raises(UnsupportedCapability, match=r"these can: none\.$"):
        admitted(asked.evolve(models=("a", "c")), models)


def test_a_refusal_names_twenty_models_at_most() -> None:
    models = catalog("a", a=fake(supports_text2img=False), **{f"m{number}": fake() for number in range(25)})
    with pytest.raises(UnsupportedCapability, match=r"m18, m19 and 5 more\.$"):
        admitted(draft(), models)


def test_inpainting_without_support_names_the_models_that_have_it() -> None:
    asked = draft(type=TaskType.IMAGE2IMAGE, strength=0.8, pictures=InputPictures(init_image=b"i", mask_image=b"m"))
    models = catalog("plain", plain=fake(), fill=fake(supports_inpaint=True))
    with pytest.raises(UnsupportedCapability, match="'plain' cannot do inpainting; these can: fill"):
        admitted(asked, models)


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_the_seeds_of_a_batch_wrap_at_the_largest() -> None:
    assert request(draft(seed=MAX_SEED - 1, batch_size=4)).seeds == (MAX_SEED - 1, MAX_SEED, 0, 1)


# -- anything ----------------------------------------------------------------------------------------------------------

MAYBE_SIDES = st.none() | st.integers(16, 8192)


@given(
    width=MAYBE_SIDES,
    height=MAYBE_SIDES,
    batch_size=st.integers(1, 64),
    steps=st.none() | st.integers(1, 200),
    seed=st.none() | st.integers(0, MAX_SEED),
    model=st.sampled_from([None, "a", "b", "c"]),
    kind=st.sampled_from(TaskType),
)
def test_an_accepted_request_is_complete_and_within_all_limits(kind: TaskType, **fields: Any) -> None:
    models = catalog(a=fake(), b=fake(supports_img2img=False))
    try:
        model, complete = admitted(draft(type=kind, **fields), models)
    except (InvalidRequest, SizeTooLarge, ModelNotFound, UnsupportedCapability):
        return
    assert model in models.models
    assert complete.size.pixels <= LIMITS.max_pixels
    assert complete.batch_size <= LIMITS.max_batch_size
    assert all(0 <= each <= MAX_SEED for each in complete.seeds)


# -- the time of a task ------------------------------------------------------------------------------------------------


def test_a_task_that_would_take_too_long_is_refused_with_the_numbers() -> None:
    models, large = catalog(a=fake(max_task_seconds=60, base_size=512)), draft(batch_size=3, steps=100)
    assert refused_for_its_time(models, large, 60) is None
    assert refused_for_its_time(models, large, 5400.4) == (
        "'a' takes at least 5,400 s for 3 x 512x512 pixels x 100 steps, by its measured times; at most 60 s are "
        "accepted (max_task_seconds)."
    )


def test_the_limit_of_a_model_comes_before_that_of_all() -> None:
    large = draft(batch_size=3, steps=100)
    assert refused_for_its_time(catalog(), large, 3601) is not None
    assert refused_for_its_time(catalog(a=fake(max_task_seconds=4000)), large, 3601) is None
    assert refused_for_its_time(catalog(a=fake(max_task_seconds=0)), large, 1e9) is None
    everywhere = Catalog(settings=GlobalSettings(max_task_seconds=0), models={"a": fake()})
    assert refused_for_its_time(everywhere, large, 1e9) is None


def test_until_the_model_is_measured_pixels_times_steps_times_pictures_are_bounded() -> None:
    models, large = catalog(a=fake(base_size=512)), draft(batch_size=4, steps=100)
    assert refused_for_its_time(models, large, None, max_pixel_steps=512 * 512 * 400) is None
    reason = refused_for_its_time(models, large, None, max_pixel_steps=10**8)
    assert reason is not None
    assert "4 x 512x512 pixels x 100 steps are 104,857,600 pixel steps; at most 100,000,000" in reason
    assert refused_for_its_time(models, large, 3, max_pixel_steps=10**8) is None
    from_picture = draft(type=TaskType.IMAGE2IMAGE, batch_size=4, steps=100, strength=0.5, width=512, height=512)
    assert refused_for_its_time(models, from_picture, None, max_pixel_steps=10**8) is None


def test_a_picture_of_the_models_own_size_and_steps_is_always_accepted() -> None:
    models = catalog(a=fake(max_task_seconds=60, base_size=512, steps=50))
    assert refused_for_its_time(models, draft(), 1e6) is None
    assert refused_for_its_time(models, draft(), None, max_pixel_steps=10**6) is None
    assert refused_for_its_time(models, draft(steps=51), 1e6) is not None
