"""Receipts: what is needed to make a picture again, and to tell whether its pixels must be the same."""

from typing import Self

from imagegen.core.provenance import Provenance
from imagegen.core.task import GenerationRequest, GenerationTask, TaskType, TokensRead, Warnings
from imagegen.core.value import Value


class Receipt(Value):
    """The receipt of one picture, or of one task."""

    #: Version of this format.
    version: int = 1
    model: str
    type: TaskType
    request: GenerationRequest
    #: SHA-256 of the input pictures' files, hexadecimal.
    init_image_sha256: str | None = None
    mask_image_sha256: str | None = None
    provenance: Provenance
    #: Warnings about the pictures, such as parts of the request that they ignore.
    warnings: Warnings = ()
    #: How much of the prompt each text encoder read; empty: not known.
    tokens: tuple[TokensRead, ...] = ()
    #: SHA-256 of the pixels, hexadecimal; None in the receipt of a task, which may have several pictures.
    pixels_sha256: str | None = None

    def of_picture(self, seed: int, pixels_sha256: str) -> Self:
        """The receipt of the one picture with this seed."""
        request = self.request.evolve(seed=seed, batch_size=1)
        return self.evolve(request=request, pixels_sha256=pixels_sha256)


def receipt_of(task: GenerationTask) -> Receipt | None:
    """The receipt of a task; None before it has made its pictures."""
    if task.provenance is None:
        return None
    return Receipt(
        model=task.model,
        type=task.type,
        request=task.request,
        init_image_sha256=task.init_image_sha256,
        mask_image_sha256=task.mask_image_sha256,
        provenance=task.provenance,
        warnings=task.warnings,
        tokens=task.tokens,
    )
