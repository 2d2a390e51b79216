"""Provenance for receipts: the weights that were read, and what runs them. docs/results.md describes the fields."""

import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import imagegen
from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.fields import Receipt, marked
from imagegen.core.provenance import Provenance
from imagegen.loaders.base import Placement
from imagegen.loaders.offloading import denoiser_of
from imagegen.loaders.options import OptionsSpec, rounding

#: Of a large file, only this many pieces of this many bytes are hashed, the first and the last among them. Reading a
#: whole file of 33 GB takes half a minute, and different weights differ in every piece.
_PIECES, _PIECE = 16, 2**20

#: A snapshot in the hub's cache, or a file in one.
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(/.+)?$")


def provenance(
    spec: OptionsSpec, pipeline: Any, placement: Placement, sources: Iterable[Path], quantization: str | None
) -> Provenance:
    """The provenance of a loaded pipeline's pictures. `sources`: the folders and files that it was read from."""
    return Provenance(
        weights=tuple(map(identity, sources)),
        loader=spec.type,
        pipeline=spec.pipeline_class,
        dtype=str(_dtype(spec, pipeline)).removeprefix("torch."),
        quantization=quantization
        or rounding(spec, placement.device)
        or spec.layerwise_casting
        or _gguf_kind(denoiser_of(pipeline)),
        sampler=type(pipeline.scheduler).__name__,
        device=_device(placement.device),
        options=_options(spec, placement),
        versions=_versions(spec, placement.device),
    )


def _dtype(spec: OptionsSpec, pipeline: Any) -> Any:
    """The dtype of the pipeline's parts but the VAE. `pipeline.dtype` may be the dtype of the VAE (`vae_dtype`)."""
    if spec.vae_dtype is None:
        return pipeline.dtype
    return next(it.dtype for name, it in pipeline.components.items() if name != "vae" and hasattr(it, "parameters"))


def with_loras(made_by: Provenance, files: Sequence[Path]) -> Provenance:
    """The same provenance with a request's LoRAs."""
    if not files:
        return made_by
    return made_by.evolve(loras=tuple(map(identity, files)), versions=made_by.versions | {"peft": version("peft")})


def identity(source: Path) -> str:
    """The identity of weights: `org/name@commit` in the hub's cache, else a hash of samples of the files."""
    if found := _SNAPSHOT.search(source.as_posix()):
        org, name, commit, path = found.groups(default="")
        return f"{org}/{name}@{commit}{path}"
    files = [source] if source.is_file() else sorted(it for it in source.rglob("*") if it.suffix in _HASHED)
    digest = sha256()
    for file in files:
        name = file.relative_to(source).as_posix()
        digest.update(f"{name}:{file.stat().st_size}:".encode())
        _digest(file, digest.update)
    return f"sample-sha256:{digest.hexdigest()}"


#: The suffixes of weights and of their configurations.
_HASHED = (".safetensors", ".json")


def _digest(file: Path, update: Any) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _PIECES * _PIECE:
            update(stream.read())
            return
        for number in range(_PIECES):
            stream.seek((size - _PIECE) * number // (_PIECES - 1))
            update(stream.read(_PIECE))


def _gguf_kind(denoiser: Any) -> str | None:
    """The quantisation type of most weights of a GGUF file; None for other files."""
    kinds = Counter(it.quant_type for it in denoiser.parameters() if getattr(it, "quant_type", None) is not None)
    if not kinds:
        return None
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kinds.most_common(1)[0][0]).name


def _device(device: str) -> str:
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    # Instructions and threads decide the order of additions, and thus the rounding.
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"cpu, {platform.machine()} {instructions}, threads: {torch.get_num_threads()}"


def _options(spec: OptionsSpec, placement: Placement) -> dict[str, Any]:
    """The options that change pixels, without those at a default that changes nothing."""
    shared = {name: spec.chosen(name, placement.settings) for name in marked(GlobalSettings, Receipt)}
    own = spec.model_dump(mode="json", include=set(marked(type(spec), Receipt)), exclude_defaults=True)
    return {name: value for name, value in (own | shared).items() if value}


def _versions(spec: OptionsSpec, device: str) -> dict[str, str]:
    import diffusers
    import torch
    import transformers

    versions = {"imagegen": imagegen.__version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    if device != "cpu":  # decides which kernels run, together with torch's version and the GPU
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    also = [*spec.libraries, *(["torchao"] if spec.quantize else []), *(["peft"] if getattr(spec, "loras", ()) else [])]
    return versions | {name: _version(name) for name in also}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # the module was not installed as a package
        return "unknown"
