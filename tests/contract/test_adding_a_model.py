"""docs/adding-a-model.md and docs/models.md, executed."""

import re
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from imagegen.catalog.loading import ConfigError, parse_catalog
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Loaded, Stopped
from imagegen.loaders import FAMILIES, SPECS
from imagegen.loaders.pipelines import FLUX, OTHERS, PIPELINES, STABLE_DIFFUSION
from tests.conftest import load_command, request_for

DOCS = Path(__file__).parents[2] / "docs"
ADDING = (DOCS / "adding-a-model.md").read_text()
MODELS = (DOCS / "models.md").read_text()


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's file, imported as a module."""
    module = ModuleType("gradient")
    monkeypatch.setitem(__import__("sys").modules, "gradient", module)
    exec(compile(block(ADDING, "python"), "adding-a-model.md", "exec"), module.__dict__)
    module.FAMILIES = {**FAMILIES, "gradient": module.GRADIENT}  # type: ignore[attr-defined]
    return module


def test_the_example_is_read_loaded_run_and_stopped_like_any_family(example: Any) -> None:
    catalog = parse_catalog(block(ADDING, "yaml"), {**SPECS, "gradient": example.GRADIENT.spec})
    engine = LocalEngine(EngineOptions(device="cpu", families="gradient:FAMILIES"))
    assert isinstance(engine.load(load_command(catalog, "dusk")), Loaded)
    command = Generate(model="dusk", request=request_for(batch_size=2, steps=2, seed=5))
    steps: list[tuple[int, int]] = []
    outcome = engine.generate(command, threading.Event(), lambda step, total, _=b"": steps.append((step, total)))
    assert isinstance(outcome, Generated)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert outcome.images[0].rgb[0] == 20
    stop = threading.Event()
    assert isinstance(engine.generate(command, stop, lambda *step: stop.set()), Stopped)


def test_its_new_field_is_checked_with_line_and_column(example: Any) -> None:
    text = block(ADDING, "yaml").replace("darkest: 20", "darkest: 300")
    with pytest.raises(ConfigError, match=r":5:5: 'darkest': input should be less than or equal to 255"):
        parse_catalog(text, {**SPECS, "gradient": example.GRADIENT.spec})


def test_the_page_of_models_holds_one_example_of_each_family_that_is_valid() -> None:
    catalog = parse_catalog(block(MODELS, "yaml"), SPECS)
    assert {spec.type for spec in catalog.models.values()} == {
        "flux",
        "stable_diffusion",
        "gguf",
        "nunchaku",
        "diffusers",
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_the_page_lists_the_abilities_of_each_class(name: str) -> None:
    kind = PIPELINES[name]
    word = "flux" if name in FLUX else "stable_diffusion" if name in STABLE_DIFFUSION else "diffusers"
    able = (kind.text2image, kind.image2image, kind.inpaint, kind.negative_prompt, kind.lora)
    cells = " | ".join("yes" if can else "" for can in able)
    assert f"| `{name}` | `{word}` | {cells} |" in MODELS


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_class_is_a_word_of_the_family(name: str) -> None:
    assert name in SPECS["diffusers"].model_json_schema()["properties"]["pipeline_class"]["enum"]
