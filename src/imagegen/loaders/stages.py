"""StageClock: measures the stages of the pictures of one call."""

import time
from collections.abc import Callable, Sequence

from imagegen.core.stages import Stage, StageTime


class StageClock:
    """Told of the borders between the stages of each picture. A picture that is not finished has no stages.

    The device works behind the program, so each border waits for it, twice a picture: otherwise the work of a stage
    would count as the next one's.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic) -> None:
        """`wait` returns once the device has done all that it was given. `clock`: seconds."""
        self._wait = wait
        self._clock = clock
        self._began = 0.0
        self._borders: list[float] = []
        self._stages: list[StageTime] = []

    @property
    def stages(self) -> Sequence[StageTime]:
        """The stages of the pictures since `begin`."""
        return tuple(self._stages)

    def begin(self) -> None:
        """A call begins."""
        self._began, self._stages = self._clock(), []

    def picture(self) -> None:
        """A picture begins, or those of a shared call."""
        self._borders = [self._clock()]

    def encoded(self) -> None:
        """A prompt or an input picture is encoded. The last one before the latents are decoded ends the stage."""
        if len(self._borders) in (1, 2):
            self._wait()
            self._borders[1:] = [self._clock()]

    def decoding(self) -> None:
        """Latents are decoded next: those of the finished picture, or before them those of a preview."""
        if self._borders:
            self._wait()
            self._borders = [*(self._borders * 2 if len(self._borders) == 1 else self._borders[:2]), self._clock()]

    def finish(self) -> None:
        """The picture is finished."""
        if len(self._borders) == 3:
            begun, encoded, denoised = self._borders
            spans: tuple[tuple[Stage, float, float], ...] = (
                ("encode", begun, encoded),
                ("denoise", encoded, denoised),
                ("decode", denoised, self._clock()),
            )
            self._stages += [StageTime(name, start - self._began, end - start) for name, start, end in spans]
        self._borders = []
