"""The stages of a picture: what its time in the worker was spent on."""

from typing import Literal, NamedTuple

#: `encode`: prompts and input pictures become embeddings and latents; `denoise`: the steps; `decode`: latents become
#: pixels.
Stage = Literal["encode", "denoise", "decode"]


class StageTime(NamedTuple):
    """One stage of one picture, or of the pictures of a shared call."""

    stage: Stage
    #: When it began, in seconds since the call did.
    begin_s: float
    seconds: float
