"""The server of a checkout of diffusers, as it stands, with a pipeline that runs on this machine.

python -m bench._peer CHECKOUT null|tiny PORT. Its own program needs a GPU and Stable Diffusion 3.5: only the pipeline
is replaced. It imports aiohttp, which imagegen does not need.
"""

import os
import sys
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
import uvicorn
from PIL import Image

from bench._embedded import CALL
from imagegen.builtin import builtin_model
from imagegen.testing.fake import grain

SIDE = 1024


class NullPipeline:
    """Returns the same picture at once."""

    scheduler = SimpleNamespace(config={}, from_config=lambda config: config)
    _picture = Image.fromarray(np.frombuffer(grain(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE, 3))

    @classmethod
    def from_pipe(cls, pipeline: Self, scheduler: object) -> Self:
        return pipeline

    def __call__(self, prompt: str, generator: object) -> Any:
        return SimpleNamespace(images=[self._picture])


def tiny_pipeline() -> tuple[type, object]:
    """The class and the pipeline of the embedded model, called as imagegen calls it."""
    from diffusers import FluxPipeline

    class TinyPipeline(FluxPipeline):  # type: ignore[misc]
        def __call__(self, prompt: str, generator: object) -> Any:
            return super().__call__(prompt, generator=generator, **CALL)

    pipeline = TinyPipeline.from_pretrained(builtin_model("tiny"))
    pipeline.set_progress_bar_config(disable=True)
    return TinyPipeline, pipeline


def load(checkout: Path) -> ModuleType:
    """Its server.py as a module."""
    spec = util.spec_from_file_location("server", checkout / "examples" / "server" / "server.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(checkout)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    checkout, kind, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.environ["SERVICE_URL"] = f"http://127.0.0.1:{port}"
    module: Any = load(checkout)
    shared = module.shared_pipeline
    module.StableDiffusion3Pipeline, shared.pipeline = (
        (NullPipeline, NullPipeline()) if kind == "null" else tiny_pipeline()
    )
    shared.device, shared.start = "cpu", lambda: None
    uvicorn.run(module.app, port=port, log_level="warning")


if __name__ == "__main__":
    main()
