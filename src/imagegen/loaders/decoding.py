"""Decoding: what to do when the latents are done and the memory does not suffice for the picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from imagegen.loaders.memory_errors import out_of_memory

#: Pixels of a tile's side, at most. diffusers' own is 1024 for the VAEs of FLUX, 3.5 and XL: no usual picture is cut.
TILE = 512

#: What is changed in a VAE for one decode.
_STATE = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size")


class Decoding:
    """Takes the place of a VAE's `decode` while its context lasts.

    Where the memory does not suffice, it decodes the same latents again: several pictures one by one, then each in
    tiles. The VAE may be another model's as well, so it is left as it was.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._whole = vae.decode
        #: Whether the latest decode was in tiles.
        self.tiled = False

    def __enter__(self) -> Self:
        self._vae.decode = self._decode
        return self

    def __exit__(self, *raised: object) -> None:
        del self._vae.decode  # the method of its class again

    def _decode(self, latents: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        self.tiled = False
        try:
            return self._whole(latents, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not hasattr(self._vae, "use_tiling"):
                raise
        # Out of the except block: the exception, and with it what the decode had allocated, is gone.
        torch.cuda.empty_cache()
        if len(latents) > 1 and not self._vae.use_slicing:
            with self._keeping():
                self._vae.enable_slicing()
                return self._decode(latents, *args, **kwargs)
        with self._keeping():
            self._cut()
            self.tiled = max(latents.shape[-2:]) > self._latents_in_a_tile()
            return self._whole(latents, *args, **kwargs)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        before = {name: getattr(self._vae, name) for name in _STATE if hasattr(self._vae, name)}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self._vae, name, value)

    def _cut(self) -> None:
        vae = self._vae
        vae.enable_tiling()
        if getattr(vae, "tile_sample_min_size", 0) > TILE:
            vae.tile_latent_min_size = TILE * vae.tile_latent_min_size // vae.tile_sample_min_size
            vae.tile_sample_min_size = TILE

    def _latents_in_a_tile(self) -> int:
        vae = self._vae
        known: int | None = getattr(vae, "tile_latent_min_size", None)
        return known or vae.tile_sample_min_height // vae.spatial_compression_ratio
