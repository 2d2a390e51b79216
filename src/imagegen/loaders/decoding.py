"""Decoding: calls a VAE in its own dtype and in tiles if memory is short, and checks that its output is finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from imagegen.loaders.memory_errors import out_of_memory
from imagegen.loaders.stages import StageClock

#: The most pixels of a tile's side. The default of diffusers is 1024 for the VAEs of FLUX, 3.5 and XL, which leaves
#: pictures of the usual sizes in one tile.
TILE = 512

#: The attributes of a VAE that are changed for one decode.
_STATE = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size")


class Decoding:
    """Replaces a VAE's `encode` and `decode` while its context lasts.

    If memory is short, it decodes the same latents again: first each picture alone, then each picture in tiles. The
    end of the context restores the VAE, because another model may share it.
    """

    def __init__(self, vae: Any, dtype: Any = None, stages: StageClock | None = None) -> None:
        """`dtype`: the dtype of the latents, if the VAE has another one. Pipelines of diffusers expect one dtype.

        `stages` is told when an input picture is encoded, and when the latents are decoded.
        """
        self._stages = stages or StageClock()
        self._vae = vae
        self._dtype = dtype
        self._vae_decode = vae.decode
        self._vae_encode = getattr(vae, "encode", None)
        #: Whether the latest decode was in tiles.
        self.tiled = False
        #: Whether all numbers of the latest decode are finite: a tensor on the device.
        self._finite: Any = True

    def __enter__(self) -> Self:
        self._vae.decode = self._decode_and_check
        if self._vae_encode is not None:
            self._vae.encode = self._encode_and_tell
        return self

    def __exit__(self, *raised: object) -> None:
        del self._vae.decode  # restores the method of its class
        if self._vae_encode is not None:
            del self._vae.encode

    @property
    def finite(self) -> bool:
        """Whether all numbers of the latest decode are finite. Pipelines clip infinite numbers afterwards."""
        return bool(self._finite)

    def _encode_and_tell(self, picture: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._vae_encode is not None
        encode = self._vae_encode if self._dtype is None else self._encode
        encoded = encode(picture, *args, **kwargs)
        self._stages.encoded()
        return encoded

    def _encode(self, picture: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._vae_encode is not None
        encoded = self._vae_encode(picture.to(self._vae.dtype), *args, **kwargs)
        if hasattr(encoded, "latent_dist"):
            distribution = encoded.latent_dist
            encoded.latent_dist = type(distribution)(distribution.parameters.to(self._dtype))
        else:
            encoded.latent = encoded.latent.to(self._dtype)
        return encoded

    def _decode_and_check(self, latents: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        self._stages.decoding()
        decoded = self._decode(latents if self._dtype is None else latents.to(self._vae.dtype), *args, **kwargs)
        self._finite = torch.isfinite(decoded[0] if isinstance(decoded, tuple) else decoded.sample).all()
        return decoded

    def _decode(self, latents: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        self.tiled = False
        try:
            return self._vae_decode(latents, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not hasattr(self._vae, "use_tiling"):
                raise
        # After the except block, so that the exception and the tensors that it references are freed.
        torch.cuda.empty_cache()
        if len(latents) > 1 and not self._vae.use_slicing:
            with self._restoring():
                self._vae.enable_slicing()
                return self._decode(latents, *args, **kwargs)
        with self._restoring():
            self._enable_tiling()
            self.tiled = max(latents.shape[-2:]) > self._latents_in_a_tile()
            return self._vae_decode(latents, *args, **kwargs)

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        """Restore the attributes of the VAE at the end of the context."""
        before = {name: getattr(self._vae, name) for name in _STATE if hasattr(self._vae, name)}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self._vae, name, value)

    def _enable_tiling(self) -> None:
        vae = self._vae
        vae.enable_tiling()
        if getattr(vae, "tile_sample_min_size", 0) > TILE:
            vae.tile_latent_min_size = TILE * vae.tile_latent_min_size // vae.tile_sample_min_size
            vae.tile_sample_min_size = TILE

    def _latents_in_a_tile(self) -> int:
        vae = self._vae
        size: int | None = getattr(vae, "tile_latent_min_size", None)
        return size or vae.tile_sample_min_height // vae.spatial_compression_ratio
