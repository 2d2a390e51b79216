"""Receipts: what a picture was made of and by: enough to make it again, and to know whether it must be the same."""

from typing import Self

from imagegen.core.provenance import Provenance
from imagegen.core.task import GenerationRequest, GenerationTask, TaskType
from imagegen.core.value import Value


class Receipt(Value):
    """One picture's, or one task's."""

    #: Of this form.
    version: int = 1
    model: str
    type: TaskType
    request: GenerationRequest
    #: Of the input pictures' files, hexadecimal.
    init_image_sha256: str | None = None
    mask_image_sha256: str | None = None
    provenance: Provenance
    #: Of the picture's pixels, hexadecimal; None in a task's receipt, which may be for several.
    pixels_sha256: str | None = None

    def of_picture(self, seed: int, pixels_sha256: str) -> Self:
        """Of one picture alone: that seed makes it."""
        request = self.request.evolve(seed=seed, batch_size=1)
        return self.evolve(request=request, pixels_sha256=pixels_sha256)


def receipt_of(task: GenerationTask) -> Receipt | None:
    """None before it has made anything, and for a task of imagegen before 0.2."""
    if task.provenance is None:
        return None
    return Receipt(
        model=task.model,
        type=task.type,
        request=task.request,
        init_image_sha256=task.init_image_sha256,
        mask_image_sha256=task.mask_image_sha256,
        provenance=task.provenance,
    )
