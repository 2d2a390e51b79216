"""The table of all ways to load a model and draw with it, and what must hold for each of them on every device."""

import gc
import json
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.memory import give_back
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded, Stopped, Unload, Unloaded
from imagegen.loaders import SPECS
from tests.conftest import load_command, request_for
from tests.contract.families import TASKS, Shelf
from tests.gguf_files import write_gguf

#: Whether this machine has a card; asked before anything pretends.
REAL_CARD = torch.cuda.is_available()

#: What cuBLAS and cuDNN keep on a real card after the first picture, in bytes.
WORKSPACES = 64 * 2**20


class Way(NamedTuple):
    """One entry of models.yaml, and what is special about it."""

    #: Fields of the entry beside those of `catalog_of`; `local_path` and `base_model` are kinds of tests/pipelines.
    entry: Mapping[str, Any]
    host_cache_gb: float = 0
    steps: int = 3
    #: Whether it shows what the picture will be like. No way does whose VAE is offloaded.
    previews: bool = True
    #: Whether it can stay in host memory.
    warm: bool = True
    #: A library that imagegen does not bring.
    needs: str | None = None
    #: Why it cannot draw on a CPU.
    not_on_cpu: str | None = None


_FLUX = {"type": "flux", "local_path": "flux-dev", "torch_dtype": "float32"}
_BF16 = _FLUX | {"torch_dtype": "bfloat16"}
_CAST = _BF16 | {"layerwise_casting": "float8_e4m3fn"}
_GGUF = {"type": "gguf", "torch_dtype": "float32"}
_SDXL = {"type": "stable_diffusion", "pipeline_class": "StableDiffusionXLPipeline", "local_path": "sdxl"}


def _other(kind: str, pipeline_class: str, word: str = "diffusers") -> dict[str, str]:
    return {"type": word, "local_path": kind, "pipeline_class": pipeline_class, "torch_dtype": "bfloat16"}


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "plain": Way(_FLUX),
        "warm": Way(_FLUX, host_cache_gb=1),
        "tiled": Way(_FLUX | {"enable_vae_tiling": True}),
        "bf16": Way(_BF16),
        "offload_model": Way(_FLUX | {"cpu_offload": "model"}),
        "offload_model_warm": Way(_FLUX | {"cpu_offload": "model"}, host_cache_gb=1),
        "offload_encoders": Way(_FLUX | {"cpu_offload": "encoders"}, host_cache_gb=1),
        "cast_offload_encoders": Way(_CAST | {"cpu_offload": "encoders"}),
        "offload_sequential": Way(_FLUX | {"cpu_offload": "sequential"}),
        "offload_group": Way(_FLUX | {"cpu_offload": "group"}),
        "cast": Way(_CAST),
        "cast_warm": Way(_CAST, host_cache_gb=1),
        "int8": Way(_BF16 | {"quantize": "int8"}, warm=False, needs="torchao"),
        "float8": Way(_BF16 | {"quantize": "float8"}, warm=False, needs="torchao"),
        "first_block": Way(_FLUX | {"step_cache": 0.1}),
        # Extrapolates from the fourth step on.
        "taylorseer": Way(_FLUX | {"step_cache": "taylorseer"}, steps=6),
        "compile": Way(_FLUX | {"compile": True}),
        "compile_first_block": Way(_FLUX | {"compile": True, "step_cache": 0.1}),
        "compile_warm": Way(_FLUX | {"compile": True}, host_cache_gb=1),
        "cudnn": Way(
            _BF16 | {"attention_backend": "_native_cudnn"}, not_on_cpu="cuDNN's attention is a kernel of CUDA's alone"
        ),
        "flash": Way(_BF16 | {"attention_backend": "_native_flash"}),
        # In float32: a CPU multiplies matrices of this width in bfloat16 ten times slower.
        "gguf": Way(_GGUF | {"local_path": "Q4_K.gguf", "base_model": "flux-wide"}),
        "gguf_warm": Way(_GGUF | {"local_path": "Q8_0.gguf", "base_model": "flux-dev"}, host_cache_gb=1),
        "sd3.5": Way(_other("sd3.5", "StableDiffusion3Pipeline", "stable_diffusion")),
        "sdxl": Way(_SDXL | {"torch_dtype": "float32"}),
        # Its VAE overflows in float16 and is widened for each picture.
        "sdxl_f16": Way(_SDXL | {"torch_dtype": "float16"}, previews=False),
        "qwen_image": Way(_other("qwen-image", "QwenImagePipeline"), previews=False),
        "z_image": Way(_other("z-image", "ZImagePipeline")),
        "flux2_klein": Way(_other("flux2-klein", "Flux2KleinPipeline", "flux"), previews=False),
        "sana": Way(_other("sana", "SanaPipeline"), previews=False),
        "chroma": Way(_other("chroma", "ChromaPipeline")),
    }
)


def skip_unless_possible(way: Way, device: str) -> None:
    """Skip the running test if this machine does not have what the way needs."""
    if device == "cpu" and way.not_on_cpu:
        pytest.skip(way.not_on_cpu)
    if way.needs and find_spec(way.needs) is None:
        pytest.skip(f"{way.needs} is not installed: diffusers would import it at the start of each worker, 0.7 s")


def walk(way: Way, device: str, shelf: Shelf) -> None:
    """Load and draw in this way on `cpu` or `cuda`, and assert what must hold.

    The picture is the same after a stop, with a preview, after image-to-image, and after a reload, which is warm where
    the entry asks for that. In the end nothing of the model is left, on the device or elsewhere.
    """
    entry = {"name": "A", "base_size": 64} | _with_files(way.entry, shelf)
    text = json.dumps({"global": {"host_cache_gb": way.host_cache_gb}, "models": {"a": entry}})
    catalog, keep_warm = parse_catalog(text, SPECS), way.host_cache_gb > 0
    give_back(device)
    gc.freeze()
    allocated = _allocated(device)
    engine = LocalEngine(EngineOptions(device=device))
    try:
        _load(engine, catalog, shelf)
        expected = _draw(engine, way)
        assert isinstance(_run(engine, way, stop_at=1), Stopped)
        seen: list[bytes] = []
        assert _draw(engine, way, previews=seen) == expected
        stays = device == "cpu" or way.entry.get("cpu_offload", "encoders") == "encoders"
        assert bool(seen) is (way.previews and stays)
        if catalog.model("a").supports_img2img:
            assert _draw(engine, way, task="image2image") != expected
        assert _draw(engine, way) == expected
        unloaded = engine.unload(Unload(model="a", keep_warm=keep_warm, switching=True))
        assert isinstance(unloaded, Unloaded), unloaded
        again = _load(engine, catalog, shelf)
        assert again.warm is unloaded.warm is (keep_warm and way.warm)
        assert _draw(engine, way) == expected
    finally:
        engine.close()
    give_back(device)
    assert _tensor_bytes() == 0
    assert _allocated(device) - allocated <= (WORKSPACES if is_real(device) else 0)


def is_real(device: str) -> bool:
    """Whether it is a real card."""
    return device != "cpu" and REAL_CARD


def _with_files(entry: Mapping[str, Any], shelf: Shelf) -> dict[str, Any]:
    """The entry; its files are written to the shelf first."""
    folder = shelf.model(entry.get("base_model", entry["local_path"]))
    if entry["type"] == "gguf" and not (file := shelf.folder / entry["local_path"]).exists():
        write_gguf(folder, file, file.stem)
    return dict(entry)


def _load(engine: LocalEngine, catalog: Catalog, shelf: Shelf) -> Loaded:
    answer = engine.load(load_command(catalog, "a", shelf.folder))
    assert isinstance(answer, Loaded), answer
    return answer


def _draw(engine: LocalEngine, way: Way, **how: Any) -> bytes:
    outcome = _run(engine, way, **how)
    assert isinstance(outcome, Generated), outcome
    return outcome.images[0].rgb


def _run(
    engine: LocalEngine, way: Way, task: str = "text2image", previews: list[bytes] | None = None, stop_at: int = 0
) -> Generated | Stopped | Failed:
    """Make one picture. `previews` gets its previews."""
    stop, brought = threading.Event(), dict[str, Any](TASKS[task][0])

    def on_step(step: int, total: int, shown: bytes = b"") -> None:
        if step == stop_at:
            stop.set()
        if previews is not None and shown:
            previews.append(shown)

    request = request_for(steps=way.steps, **TASKS[task][1])
    command = Generate(model="a", request=request, previews=int(previews is not None), **brought)
    return engine.generate(command, stop, on_step)


def _allocated(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def _tensor_bytes() -> int:
    """Of all tensors on any device that were made since the last `gc.freeze` and still live."""
    gc.collect()
    tensors = [it for it in gc.get_objects() if type(it) in (torch.Tensor, torch.nn.Parameter)]
    return sum({it.untyped_storage()._cdata: it.untyped_storage().nbytes() for it in tensors}.values())
