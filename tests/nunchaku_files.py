"""Files in the form of the Nunchaku engine, for the fake engine in this folder."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def write_transformer(pipeline: Path, file: Path) -> Path:
    """The transformer of a pipeline's folder as one file with its configuration in the header."""
    return _write(pipeline / "transformer", "diffusion_pytorch_model.safetensors", file)


def write_t5(pipeline: Path, file: Path) -> Path:
    """Its T5 encoder, likewise."""
    return _write(pipeline / "text_encoder_2", "model.safetensors", file)


def _write(part: Path, weights: str, file: Path) -> Path:
    config = json.loads((part / "config.json").read_bytes())
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(part / weights), file, metadata={"config": json.dumps(config)})
    return file
