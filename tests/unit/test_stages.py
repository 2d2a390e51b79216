"""StageClock: the stages of pictures, from the borders that it is told."""

from imagegen.core.stages import StageTime
from imagegen.loaders.stages import StageClock
from imagegen.testing.clock import Clock


def test_each_picture_has_three_stages_without_gaps() -> None:
    clock, waits = Clock(), list[float]()
    stages = StageClock(lambda: waits.append(clock.now), clock)
    stages.begin()
    for _ in range(2):
        clock.now += 1
        stages.picture()
        clock.now += 2
        stages.encoded()  # the prompt
        clock.now += 2
        stages.encoded()  # the input picture
        clock.now += 8
        stages.decoding()
        clock.now += 3
        stages.finish()
    assert stages.stages == (
        *(StageTime("encode", 1, 4), StageTime("denoise", 5, 8), StageTime("decode", 13, 3)),
        *(StageTime("encode", 17, 4), StageTime("denoise", 21, 8), StageTime("decode", 29, 3)),
    )
    assert len(waits) == 6


def test_the_latents_of_a_preview_belong_to_denoising_and_a_prompt_may_not_be_encoded() -> None:
    clock = Clock()
    stages = StageClock(clock=clock)
    stages.begin()
    stages.picture()
    for seconds in (1, 4):
        clock.now += seconds
        stages.decoding()
    clock.now += 2
    stages.finish()
    assert stages.stages == (StageTime("encode", 0, 0), StageTime("denoise", 0, 5), StageTime("decode", 5, 2))


def test_what_is_not_finished_has_no_stages_and_nothing_of_it_stays() -> None:
    stages = StageClock()
    stages.encoded()
    stages.decoding()
    stages.finish()
    stages.begin()
    stages.picture()
    stages.decoding()
    assert stages.stages == ()
    stages.picture()
    stages.finish()
    assert stages.stages == ()
