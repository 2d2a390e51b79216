"""DiffusersModel without torch and diffusers: checked folders, exact sizes."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imagegen.builtin import builtin_model
from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode, WeightsMissing, WeightsRefused
from imagegen.core.sizes import Size, render_size
from imagegen.core.wording import THE_LOG
from imagegen.loaders.base import Placement
from imagegen.loaders.diffusers_model import _library, device_map
from imagegen.loaders.flux import FluxSpec
from imagegen.loaders.folder import read_index
from imagegen.loaders.nunchaku import NunchakuSpec
from imagegen.loaders.options import rounding
from imagegen.loaders.parts import Parts
from imagegen.loaders.pictures import crop, fit_image

PIPELINE = "FluxPipeline"
GOOD: dict[str, Any] = {
    "_class_name": PIPELINE,
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "image_encoder": [None, None],
    "force_zeros": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, index: object) -> None:
    data = index if isinstance(index, bytes) else json.dumps(index).encode()
    (folder / "model_index.json").write_bytes(data)


# -- model_index.json --------------------------------------------------------------------------------------------------


def test_an_honest_folder_passes(folder: Path) -> None:
    write(folder, GOOD)
    read_index(folder, PIPELINE)


def test_the_embedded_model_passes() -> None:
    read_index(builtin_model("tiny"), PIPELINE)


@pytest.mark.parametrize(
    "part",
    [
        ["os", "system"],
        ["subprocess", "Popen"],
        ["this", "s"],
        ["builtins", "eval"],
        ["evil", "Evil"],
        ["evil.py", "Evil"],
        ["../evil", "Evil"],
        ["diffusers.utils.import_utils", "os"],
        ["diffusers/../evil", "Evil"],
        ["Diffusers", "AutoencoderKL"],
        [None, "None"],
        ["diffusers"],
        ["diffusers", "AutoencoderKL", "extra"],
        [],
        [["diffusers"], "AutoencoderKL"],
        [{"diffusers": 1}, "AutoencoderKL"],
        [7, "AutoencoderKL"],
        ["", "AutoencoderKL"],
    ],
    ids=str,
)
def test_code_from_anywhere_else_is_refused_by_name_and_never_imported(folder: Path, part: list[Any]) -> None:
    marker = folder / "marker"
    for name in ("evil.py", "None.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()")
    write(folder, {**GOOD, "vae": part})
    with pytest.raises(WeightsRefused, match="not allowed, for 'vae'"):
        read_index(folder, PIPELINE)
    assert not marker.exists()


@pytest.mark.parametrize(
    "index",
    [
        {},
        [],
        [GOOD],
        None,
        "FluxPipeline",
        7,
        {**GOOD, "_class_name": "StableDiffusionPipeline"},
        {**GOOD, "_class_name": ["pipeline", "Evil"]},
        {**GOOD, "_class_name": None},
        {key: value for key, value in GOOD.items() if key != "_class_name"},
    ],
    ids=str,
)
def test_a_folder_of_another_pipeline_is_refused(folder: Path, index: object) -> None:
    write(folder, index)
    with pytest.raises(WeightsRefused, match="does not describe a FluxPipeline"):
        read_index(folder, PIPELINE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe\xfd",
        b"<!doctype html>",
        b'{"_class_name": "FluxPipeline",}',
        b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_an_index_that_is_not_json_is_refused(folder: Path, data: bytes) -> None:
    write(folder, data)
    with pytest.raises(WeightsRefused, match="is not JSON"):
        read_index(folder, PIPELINE)


def test_a_folder_without_an_index_is_missing_its_weights(folder: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"no model_index\.json"):
        read_index(folder, PIPELINE)


def test_a_folder_that_is_not_there_is_missing_its_weights(folder: Path) -> None:
    with pytest.raises(WeightsMissing):
        read_index(folder / "none", PIPELINE)


def test_the_errors_have_codes_of_their_own() -> None:
    assert WeightsRefused.failure is FailureCode.WEIGHTS_REFUSED
    assert WeightsMissing.failure is FailureCode.WEIGHTS_MISSING


@pytest.mark.parametrize("index", [[], {**GOOD, "vae": ["os", "system"]}, b"{"], ids=str)
def test_no_error_contains_the_folders_path(folder: Path, index: object) -> None:
    write(folder, index)
    with pytest.raises(WeightsRefused) as raised:
        read_index(folder, PIPELINE)
    assert str(folder) not in raised.value.detail


ANY_PART = st.lists(st.none() | st.text(max_size=8) | st.sampled_from(["diffusers", "os", "transformers"]), max_size=3)


@given(st.dictionaries(st.sampled_from(["vae", "scheduler", "x"]), ANY_PART | st.none() | st.booleans(), max_size=3))
def test_a_checked_folder_names_only_classes_of_the_two_libraries(tmp_path_factory: Any, parts: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder, {"_class_name": PIPELINE, **parts})
    try:
        read_index(folder, PIPELINE)
    except WeightsRefused:
        return
    lists = [part for part in parts.values() if isinstance(part, list)]
    assert all(len(part) == 2 for part in lists)
    assert {part[0] for part in lists} <= {"diffusers", "transformers", None}


# -- the exact picture -------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(1, 70))
def test_the_centre_of_the_rendered_picture_has_the_requested_size(width: int, height: int) -> None:
    asked = Size(width, height)
    rendered = render_size(asked)
    x, y = np.meshgrid(np.arange(rendered.width), np.arange(rendered.height))
    picture = np.stack([x, y, np.zeros_like(x)], axis=-1) / 255
    pixels = crop(picture, asked, seed=7)
    assert (pixels.width, pixels.height, pixels.seed) == (width, height, 7)
    corner = np.frombuffer(pixels.rgb, np.uint8).reshape(height, width, 3)[0, 0]
    assert corner.tolist() == [(rendered.width - width) // 2, (rendered.height - height) // 2, 0]


def test_transparent_pixels_of_a_model_stay_transparent() -> None:
    picture = np.ones((2, 2, 4), np.float32)
    picture[0, :, 3] = 0
    pixels = crop(picture, Size(2, 2), seed=7)
    assert (pixels.rgb, pixels.alpha) == (b"\xff" * 12, b"\0\0\xff\xff")
    assert crop(picture[..., :3], Size(2, 2), seed=7).alpha is None


def test_a_picture_of_the_exact_size_is_not_cropped() -> None:
    picture = np.random.default_rng(1).random((32, 16, 3))
    rgb = np.frombuffer(crop(picture, Size(16, 32), 0).rgb, np.uint8).reshape(32, 16, 3)
    assert np.array_equal(rgb, np.round(picture * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("value", "byte"), [(0.0, 0), (1.0, 255), (0.5, 128), (1 / 255, 1), (-0.2, 0), (1.7, 255), (0.4999 / 255, 0)]
)
def test_colours_are_rounded_and_kept_within_eight_bits(value: float, byte: int) -> None:
    assert set(crop(np.full((16, 16, 3), value), Size(16, 16), 0).rgb) == {byte}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_tensor_becomes_the_very_bytes_that_its_array_becomes(dtype: str, channels: int) -> None:
    import torch

    noise = torch.rand(48, 32, channels, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    noise[0, :, 0] = (torch.arange(32) * 8 + 0.5) / 255  # halfway between two bytes
    picture = noise.to(getattr(torch, dtype)).float()
    assert crop(picture, Size(24, 40), seed=7) == crop(picture.numpy(), Size(24, 40), seed=7)


# -- input pictures ----------------------------------------------------------------------------------------------------


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("size", [Size(16, 16), Size(64, 16), Size(16, 48), Size(128, 128)])
def test_an_input_picture_fills_the_size(size: Size) -> None:
    fitted = fit_image(png(halves()), size)
    assert fitted.size == size
    assert fitted.mode == "RGB"


def test_its_centre_is_kept() -> None:
    banner = Image.new("RGB", (100, 20), "red")
    banner.paste("blue", (40, 0, 60, 20))
    assert fit_image(png(banner), Size(20, 20)).getcolors() == [(400, (0, 0, 255))]


def test_it_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    fitted = fit_image(png(halves(20, 20), exif=exif), Size(20, 20))
    assert fitted.getpixel((10, 2)) == (255, 0, 0)
    assert fitted.getpixel((10, 17)) == (0, 0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_other_readers_turn_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lopsided = halves(24, 24)
    lopsided.paste("lime", (0, 0, 12, 6))
    encoded = png(lopsided, exif=exif)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = ImageOps.exif_transpose(image)
    assert fit_image(encoded, Size(24, 24)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (9, 9)) if mode == "I;16" else halves().convert(mode)
    assert fit_image(png(image), Size(16, 16)).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_broken_metadata_is_still_a_picture(kind: str) -> None:
    file = io.BytesIO()
    halves().save(file, kind, exif=b"Exif\0\0not a TIFF header")
    assert fit_image(file.getvalue(), Size(16, 16)).size == (16, 16)


#: One EXIF entry each (tag, type, count, value) that decoders of pictures do not mind and encoders of EXIF do.
ODD_ENTRIES = {
    "a maker that is a fraction": (0x010F, 5, 1, 0),
    "a maker that is a number": (0x010F, 11, 1, 0),
    "a resolution that is bytes": (0x011A, 1, 1, 0),
    "a resolution that is text": (0x011A, 2, 1, 0),
    "a resolution below zero": (0x011A, 6, 1, 2**32 - 1),
    "a note of a huge number": (0x927C, 16, 1, 0),
}


@pytest.mark.parametrize("entry", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_metadata_beside_the_orientation_does_not_matter(kind: str, entry: tuple[int, int, int, int]) -> None:
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    entries = sorted([struct.pack("<HHII", *entry), orientation], key=lambda packed: packed[1::-1])
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4) + bytes(range(100, 164))
    file = io.BytesIO()
    halves(20, 20).save(file, kind, exif=exif)
    red, _, blue = fit_image(file.getvalue(), Size(20, 20)).getpixel((10, 2))
    assert red > 200 > 50 > blue


# -- what is not installed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'ftfy'", name="ftfy"), "ftfy: install it beside imagegen"),
        (
            ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found"),
            "torchvision, which is not installed: `make vision` installs the build that matches torch",
        ),
        (ImportError("something else"), f"a library that {THE_LOG} names: install it beside imagegen"),
    ],
)
def test_a_library_that_is_not_installed_is_named(error: ImportError, said: str) -> None:
    assert _library(error) == said


# -- the way to the device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "fields", "way"),
    [
        ("cuda", {}, "cuda"),
        ("cpu", {}, None),
        ("cuda:1", {}, None),  # diffusers knows the first device only
        ("cuda", {"cpu_offload": "model"}, None),
        ("cuda", {"layerwise_casting": "float8_e4m3fn"}, None),
        ("cuda", {"quantize": "int8"}, "cuda"),
        ("cuda", {"cpu_offload": "encoders"}, None),
    ],
)
@pytest.mark.parametrize("host_cache_gb", [0, 8])
def test_weights_go_straight_to_the_device_where_nothing_stays_in_host_memory(
    device: str, fields: dict[str, Any], way: str | None, host_cache_gb: float
) -> None:
    spec = FluxSpec.model_validate({"name": "A", "type": "flux", "local_path": "a"} | fields)
    settings = GlobalSettings(host_cache_gb=host_cache_gb)
    assert device_map(spec, Placement(device, settings, Folders(Path(), Path()), Parts())) == way


@pytest.mark.parametrize(
    ("device", "capability", "word", "way"),
    [
        ("cuda", (8, 0), "float8", "float8"),
        ("cuda", (8, 6), "float8", "float8"),
        ("cuda", (8, 9), "float8", "float8_dynamic"),
        ("cuda", (9, 0), "float8", "float8_dynamic"),
        ("cuda", (12, 0), "float8", "float8_dynamic"),
        ("cuda", (9, 0), "int8", "int8"),
        ("cuda", (9, 0), None, None),
        ("cpu", None, "float8", "float8"),
        ("cpu", None, None, None),
    ],
)
def test_float8_is_multiplied_as_such_where_the_device_can(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: Any, word: Any, way: str | None
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    spec = FluxSpec.model_validate({"name": "A", "type": "flux", "local_path": "a", "quantize": word})
    assert rounding(spec, device) == way


def test_memory_of_the_nunchaku_engine_never_stays_in_host_memory() -> None:
    entry = {"name": "A", "type": "nunchaku", "base_model": "org/base", "local_path": "a.safetensors"}
    spec = NunchakuSpec.model_validate(entry)
    placement = Placement("cuda", GlobalSettings(host_cache_gb=8), Folders(Path(), Path()), Parts())
    assert not spec.stays_in_host_memory
    assert device_map(spec, placement) == "cuda"
