"""The reference pages are complete."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from pydantic import BaseModel
from scripts import drawings

import imagegen
from imagegen.api.native.images.routes import ImageView
from imagegen.api.native.models.pulls import PullView
from imagegen.api.native.tasks.generation import Image2ImageBody, Text2ImageBody
from imagegen.api.native.tasks.view import ReplayView, TaskView
from imagegen.api.native.tasks.waiting import TaskAccepted
from imagegen.api.openai.fields import EditFields, GenerationFields, ImageFields, VariationFields
from imagegen.api.problems import STATUS
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog, GlobalSettings, Section
from imagegen.catalog.fields import field_names, spellings
from imagegen.core.errors import FailureCode
from imagegen.core.events import Event
from imagegen.core.task import TaskStatus, TokensRead
from imagegen.core.webhooks import DeliveryState
from imagegen.hub.puller import PullState
from imagegen.loaders import SPECS
from imagegen.models.residency import ModelState
from imagegen.settings import Settings
from tests.conformance.__main__ import CLIENTS, known_clients, snippet

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
API = (DOCS / "api.md").read_text()
GLOSSARY = (DOCS / "glossary.md").read_text()


def kinds_of_event(kind: type[Event]) -> Iterator[type[Event]]:
    for each in kind.__subclasses__():
        yield each
        yield from kinds_of_event(each)


#: Every code of a problem or of a failed task.
CODES = sorted({*STATUS, *FailureCode, "internal_error", "http_error"})
EVENTS = sorted({it.name for it in kinds_of_event(Event) if it.__module__ == Event.__module__ and hasattr(it, "name")})


SECTIONS: list[type[Section]] = [GlobalSettings, *SPECS.values()]


@pytest.mark.parametrize("name", sorted({n for s in SECTIONS for n in field_names(s)}))
def test_every_field_of_models_yaml_is_documented(name: str) -> None:
    assert f"`{name}`" in CONFIGURATION


@pytest.mark.parametrize("kind", [GenerationFields, EditFields, VariationFields])
def test_every_field_of_openais_api_is_documented(kind: type[ImageFields]) -> None:
    page = (DOCS / "clients.md").read_text()
    assert [name for name in kind.model_fields if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_process_setting_is_documented(name: str) -> None:
    assert f"`IMAGEGEN_{name.upper()}`" in CONFIGURATION


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_page_and_is_linked_in_the_table(code: str) -> None:
    assert f"[`{code}`](errors/{code}.md)" in API
    page = (DOCS / "errors" / f"{code}.md").read_text()
    assert page.startswith(f"# `{code}`\n")
    assert re.findall("^## (.*)$", page, re.MULTILINE) == ["Why it happens", "What to do"]
    assert (code in {*FailureCode}) == ("Code of a failed task." in page)
    if code in STATUS:
        assert f"HTTP status {STATUS[code]}." in page


def test_every_page_is_about_a_code() -> None:
    assert {page.stem for page in (DOCS / "errors").iterdir()} == set(CODES)


#: Variables that clients read, not the service.
OF_CLIENTS = {"IMAGEGEN_URL", "IMAGEGEN_SERVER", "IMAGEGEN_KEY"}


@pytest.mark.parametrize("page", ["../README.md", *(str(it.relative_to(DOCS)) for it in sorted(DOCS.rglob("*.md")))])
def test_a_page_names_only_settings_that_exist(page: str) -> None:
    named = set(re.findall(r"IMAGEGEN_[A-Z_]+", (DOCS / page).read_text()))
    assert named <= {f"IMAGEGEN_{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS


@pytest.mark.parametrize("code", CODES)
def test_a_page_names_only_routes_that_exist(code: str) -> None:
    text = " ".join((DOCS / "errors" / f"{code}.md").read_text().split())
    named = set(re.findall(r"`(?:GET|POST|PUT|PATCH|DELETE) /[^`? ]*", text)) - {"`GET /text2image"}
    assert named <= {route.rstrip("`") for route in re.findall(r"`[A-Z]+ /[^`]*`", API)}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_is_documented(name: str) -> None:
    assert f"`{name}`" in API


def test_every_tag_of_the_openapi_document_is_described_and_is_a_word_of_the_glossary(
    shipped: Catalog, tmp_path: Path
) -> None:
    document = create_app(Settings(data_dir=tmp_path), shipped).openapi()
    described = [tag["name"] for tag in document["tags"]]
    used = {tag for operations in document["paths"].values() for it in operations.values() for tag in it["tags"]}
    assert used == set(described)
    assert not [tag for tag in described if f"| **{tag.removesuffix('s')}** |" not in GLOSSARY]


def test_the_words_of_the_glossary_are_in_order() -> None:
    words = re.findall(r"^\| \*\*(.+)\*\* \|", GLOSSARY, re.MULTILINE)
    assert len(words) > 40
    assert words == sorted(set(words))


def test_every_endpoint_is_documented(shipped: Catalog, tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), shipped)
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in API


@pytest.mark.parametrize("kind", [TaskView, ImageView, TaskAccepted, PullView, ReplayView, TokensRead])
def test_every_field_of_a_task_is_documented(kind: type[BaseModel]) -> None:
    _, _, section = API.partition("## Fields of a task\n")
    section = section.partition("\n## ")[0]
    assert [name for name in kind.model_fields if f"`{name}`" not in section] == []


@pytest.mark.parametrize("words", [TaskStatus, ModelState, PullState, DeliveryState])
def test_every_word_of_a_status_is_documented(words: type[StrEnum]) -> None:
    _, _, section = API.partition("### Words of a status\n")
    section = section.partition("\n## ")[0]
    assert [word for word in words if f"`{word}`" not in section] == []


@pytest.mark.parametrize("path", drawings.made(), ids=lambda path: path.name)
def test_the_drawings_are_current(path: Path) -> None:
    assert path.read_text() == drawings.made()[path], "run `python -m scripts.drawings`"


#: What the row of a client in docs/clients.md begins with, by the client's folder.
ROWS_OF_CLIENTS = {
    "sdk_python": "imagegen-client (Python)",
    "sdk_typescript": "imagegen-client (TypeScript)",
    "openapi_lint": "redocly",
    "schemathesis": "schemathesis",
    "openai-python": "openai (Python)",
    "openai-node": "openai (npm)",
    "litellm": "litellm",
    "langchain": "langchain-community",
    "ai-sdk": "@ai-sdk/openai-compatible",
    "open-webui": "Open WebUI",
    "together": "together",
    "webuiapi": "webuiapi",
    "librechat": "LibreChat",
    "sillytavern": "SillyTavern",
    "huggingface-hub": "huggingface_hub",
    "huggingface-inference": "@huggingface/inference",
    "replicate-python": "replicate (Python)",
    "replicate-node": "replicate (JavaScript)",
    "mcp": "mcp (Python)",
}

#: Programs that are configured in their own pages, and tools for the OpenAPI document.
WITHOUT_SNIPPET = {"open-webui", "librechat", "sillytavern", "openapi_lint", "schemathesis"}

#: Checks of our own page and of our own chart, which are no clients of another API.
OF_OURS = {"page", "page-code", "helm"}


def version_of(client: str) -> str:
    """Major and minor version of the first package that a client's folder names."""
    folder = CLIENTS / client
    named = [folder / name for name in ("no-deps.txt", "requirements.txt", "package.json")]
    text = next(path.read_text() for path in named if path.exists())
    found = re.search(r'(?:==|": ")(\d+\.\d+)', text)
    return found[1] if found else imagegen.__version__


@pytest.mark.parametrize("client", known_clients())
def test_every_client_that_is_run_has_a_row_with_its_version_and_a_snippet(client: str) -> None:
    if client in OF_OURS:
        return
    rows = re.findall(r"^\| .*$", (DOCS / "clients.md").read_text(), re.MULTILINE)
    (row,) = [row for row in rows if row.startswith(f"| {ROWS_OF_CLIENTS[client]}")]
    assert version_of(client) in row
    assert (snippet(client) is None) == (client in WITHOUT_SNIPPET)


@pytest.mark.parametrize(
    "target", ["fast", "lint", "test", "check", "coverage", "conformance", "torture", "bench", "docs"]
)
def test_what_runs_where_is_documented(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"\n| `make {target}` |" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("kind", [Text2ImageBody, Image2ImageBody])
def test_every_field_of_a_generation_is_documented_with_its_older_names(kind: type[BaseModel]) -> None:
    section = API.partition("## Fields of a generation\n")[2].partition("\n## ")[0]
    names = {name for field, info in kind.model_fields.items() for name in spellings(field, info)}
    assert sorted(name for name in names if f"`{name}`" not in section) == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_default_of_a_process_setting_is_documented(name: str) -> None:
    rows = dict(re.findall(r"^\| `IMAGEGEN_(\w+)` \| (.*?) \|", CONFIGURATION, re.MULTILINE))
    default = Settings.model_fields[name].get_default(call_default_factory=False)
    if isinstance(default, bool):
        assert rows[name.upper()] == str(default).lower()
    elif isinstance(default, int | float):
        assert rows[name.upper()] == f"{default:.10g}"
    elif isinstance(default, str) and default:
        assert rows[name.upper()] == default
