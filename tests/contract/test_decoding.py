"""Finished latents are not lost if memory is too short to decode the whole picture."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import Decoder as DCDecoder
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageDecoder3d
from diffusers.models.autoencoders.vae import Decoder as KLDecoder

from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded
from imagegen.loaders import decoding
from tests.conftest import load_command, request_for
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, run, shelf_of

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

#: Kind -> its decoder, and a side of a picture that is larger than a tile.
KINDS = {
    "flux-dev": (KLDecoder, 128),
    "flux2-klein": (KLDecoder, 128),
    "qwen-image": (QwenImageDecoder3d, 320),
    "sana": (DCDecoder, 640),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), KINDS) as shelf:
        yield shelf


@pytest.fixture
def engine(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEngine]:
    """Loads all kinds, with tiles of 64 pixels, because diffusers' own are larger than a tiny picture."""
    monkeypatch.setattr(decoding, "TILE", 64)
    made = LocalEngine(EngineOptions(device="cpu"))
    catalog = catalog_of(**{kind: shelf.entry(kind) | {"max_batch": 2} for kind in KINDS})
    for kind in KINDS:
        assert isinstance(made.load(load_command(catalog, kind, shelf.folder)), Loaded)
    yield made
    made.close()


class Device:
    """Limits the memory of each decoder to this many latents at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 10**9
        #: Latents of each decode that was begun.
        self.begun: list[int] = []
        for kind in {decoder for decoder, _ in KINDS.values()}:
            monkeypatch.setattr(kind, "forward", self._limited(kind.forward))

    def _limited(self, forward: Any) -> Any:
        def limited(module: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
            size = len(latents) * latents.shape[-1] * latents.shape[-2]
            self.begun.append(size)
            if size > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(module, latents, *args, **kwargs)

        return limited


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def state(vae: Any) -> dict[str, Any]:
    """All attributes that decide how it decodes."""
    return {name: value for name, value in vae.__dict__.items() if name.startswith(("use_", "tile_", "decode"))}


def pixels(outcome: Any, index: int = 0) -> Any:
    assert isinstance(outcome, Generated), outcome
    return np.frombuffer(outcome.images[index].rgb, np.uint8).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_does_not_fit_is_decoded_in_tiles_and_its_receipt_says_so(
    engine: LocalEngine, device: Device, kind: str
) -> None:
    side = KINDS[kind][1]
    loaded: Any = engine._models[kind].model
    vae = loaded._pipeline.vae
    before = state(vae)
    whole = run(engine, kind, width=side, height=side)
    device.most = device.begun[-1] - 1
    steps: list[int] = []
    tiled = engine.generate(
        Generate(model=kind, request=request_for(width=side, height=side, steps=2, guidance_scale=3.0)),
        threading.Event(),
        lambda step, total, _=b"": steps.append(step),
    )
    assert steps == [1, 2]
    assert isinstance(whole, Generated)
    assert isinstance(tiled, Generated)
    assert (whole.provenance.decoded, tiled.provenance.decoded) == (None, "tiled")
    difference = np.abs(pixels(tiled) - pixels(whole))
    assert 0 < difference.mean() < 30
    # The VAE is as it was, and so is the next picture.
    assert state(vae) == before
    device.most = 10**9
    again = run(engine, kind, width=side, height=side)
    assert np.array_equal(pixels(again), pixels(whole))
    assert isinstance(again, Generated)
    assert again.provenance.decoded is None


def test_pictures_of_one_call_are_decoded_one_by_one_before_any_is_cut(engine: LocalEngine, device: Device) -> None:
    requests = [request_for(seed=seed, width=128, height=128, steps=2, guidance_scale=3.0) for seed in (1, 2)]
    command = Generate(model="flux-dev", request=requests[0], companions=(requests[1],), together=True)
    whole = engine.generate(command, threading.Event(), lambda *_: None)
    device.most = device.begun[-1] // 2
    sliced = engine.generate(command, threading.Event(), lambda *_: None)
    assert isinstance(sliced, Generated)
    assert sliced.provenance.decoded is None
    for index in (0, 1):
        assert np.abs(pixels(sliced, index) - pixels(whole, index)).max() <= 1
    device.most //= 2
    tiled = engine.generate(command, threading.Event(), lambda *_: None)
    assert isinstance(tiled, Generated)
    assert tiled.provenance.decoded == "tiled"


def test_one_picture_in_tiles_marks_the_batch(engine: LocalEngine, device: Device) -> None:
    def second_picture(step: int, total: int, preview: bytes = b"") -> None:
        if step == 3:
            device.most = 10**9

    request = request_for(width=128, height=128, steps=2, guidance_scale=3.0, batch_size=2)
    device.most = 255
    batch = engine.generate(Generate(model="flux-dev", request=request), threading.Event(), second_picture)
    assert isinstance(batch, Generated)
    assert batch.provenance.decoded == "tiled"


def test_a_picture_that_does_not_fit_in_tiles_fails(engine: LocalEngine, device: Device) -> None:
    device.most = 0
    failed = run(engine, "flux-dev", width=128, height=128)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.OUT_OF_MEMORY


def test_another_error_of_the_decoder_is_not_tried_again(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []

    def broken(module: Any, latents: Any, *args: Any, **kwargs: Any) -> None:
        begun.append(None)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(KLDecoder, "forward", broken)
    failed = run(engine, "flux-dev", width=128, height=128)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.DEVICE_FAULT
    assert len(begun) == 1


def test_a_preview_in_tiles_does_not_mark_the_picture(engine: LocalEngine, device: Device) -> None:
    previews: list[bytes] = []

    def preview(step: int, total: int, picture: bytes = b"") -> None:
        if picture:
            previews.append(picture)
            device.most = 10**9  # for the picture itself there is memory again

    request = request_for(width=128, height=128, steps=4, guidance_scale=3.0)
    whole = engine.generate(Generate(model="flux-dev", request=request), threading.Event(), lambda *_: None)
    device.most = 255
    outcome = engine.generate(Generate(model="flux-dev", request=request, previews=1), threading.Event(), preview)
    assert isinstance(outcome, Generated)
    assert len(previews) == 1
    assert outcome.provenance.decoded is None
    assert np.array_equal(pixels(outcome), pixels(whole))
