"""How many tokens of the prompt each text encoder read, and a warning if its end was ignored."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from imagegen.catalog.sources import Folders
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Loaded
from imagegen.loaders import FAMILIES
from imagegen.loaders.pipelines import PIPELINES
from tests.conftest import load_command, request_for
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, run, shelf_of

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]

#: Kind -> fields of its entry, the encoders, and those that read no more than so many tokens.
KINDS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "flux-dev": ({"max_sequence_length": 100}, {"text_encoder": 77, "text_encoder_2": 100}),
    "sd3": ({}, {"text_encoder": 77, "text_encoder_2": 77, "text_encoder_3": 256}),
    "sdxl": ({}, {"text_encoder": 77, "text_encoder_2": 77}),
    "qwen-image": ({"max_sequence_length": 600}, {"text_encoder": 600}),
    "z-image": ({}, {"text_encoder": 512}),
    "flux2-klein": ({"max_sequence_length": 200}, {"text_encoder": 200}),
    # 300, and those of its instruction.
    "sana": ({}, {"text_encoder": 1355}),
    "chroma": ({}, {"text_encoder": 512}),
    "kolors": ({}, {"text_encoder": 256}),
}

#: One token a letter, with the tokenizers of the tiny models.
LONG = "a zebra " * 90


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), KINDS) as shelf:
        yield shelf


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(EngineOptions(device="cpu"))
    yield made
    made.close()


def load(engine: LocalEngine, shelf: Shelf, kind: str, **changes: Any) -> None:
    catalog = catalog_of(**{kind: shelf.entry(kind) | KINDS[kind][0] | changes})
    assert isinstance(loaded := engine.load(load_command(catalog, kind, shelf.folder)), Loaded), loaded


def made(engine: LocalEngine, kind: str, prompt: str, **changes: Any) -> Generated:
    outcome = run(engine, kind, prompt=prompt, steps=1, **changes)
    assert isinstance(outcome, Generated), outcome
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_each_encoder_reports_its_tokens(engine: LocalEngine, shelf: Shelf, kind: str) -> None:
    load(engine, shelf, kind)
    short = made(engine, kind, "A cat")
    assert [it.encoder for it in short.tokens[0]] == list(KINDS[kind][1])
    assert all(0 < it.read == it.of for it in short.tokens[0])
    assert short.warnings == ()
    for _ in range(2):  # the second time, the prompt is known
        long = made(engine, kind, LONG)
        assert {it.encoder: it.read for it in long.tokens[0]} == KINDS[kind][1]
        assert all(it.of > 500 for it in long.tokens[0])
        (warning,) = long.warnings[0]
        assert warning.startswith("The end of the prompt is ignored. Tokens: text_encoder read ")
    # It is true: what comes after changes nothing.
    assert made(engine, kind, LONG + "in the snow").images == long.images


def test_an_end_that_one_encoder_reads_is_not_ignored(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "flux-dev", max_sequence_length=512)
    read = made(engine, "flux-dev", "a zebra " * 20)
    assert [(it.encoder, it.read < it.of) for it in read.tokens[0]] == [
        ("text_encoder", True),
        ("text_encoder_2", False),
    ]
    assert read.warnings == ()


def test_a_negative_prompt_is_reported_as_well(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "sdxl")
    (warning,) = made(engine, "sdxl", "a cat", negative_prompt=LONG).warnings[0]
    assert warning.startswith("The end of the negative_prompt is ignored. Tokens: text_encoder read 77 of ")


def test_each_request_of_a_shared_call_gets_the_tokens_of_its_own_prompt(engine: LocalEngine, shelf: Shelf) -> None:
    load(engine, shelf, "sdxl", max_batch=2)
    requests = [request_for(prompt, steps=1, guidance_scale=3.0) for prompt in ("a cat", LONG)]
    command = Generate(model="sdxl", request=requests[0], companions=tuple(requests[1:]), together=True)
    outcome = engine.generate(command, threading.Event(), lambda *_: None)
    assert isinstance(outcome, Generated), outcome
    assert [[it.read == it.of for it in tokens] for tokens in outcome.tokens] == [[True, True], [False, False]]
    assert [len(warnings) for warnings in outcome.warnings] == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_warns_of_ignored_parts_without_a_load(shelf: Shelf, kind: str) -> None:
    spec = catalog_of(**{kind: shelf.entry(kind) | KINDS[kind][0]}).models[kind]
    loader, folders = FAMILIES[spec.type].loader, Folders(shelf.folder, shelf.folder)
    assert loader.prompt_warnings(spec, folders, "a cat") == []
    (warning,) = loader.prompt_warnings(spec, folders, LONG * 3)
    most = spec.max_sequence_length or PIPELINES[spec.pipeline_class].tokens  # type: ignore[attr-defined]
    assert warning.startswith(f"The end of the prompt will be ignored: the model reads {most} tokens, ")
    # Without the files, a word is at least a token.
    assert most is not None
    elsewhere = Folders(shelf.folder / "none", shelf.folder)
    assert loader.prompt_warnings(spec, elsewhere, "a " * most) == []
    (warning,) = loader.prompt_warnings(spec, elsewhere, "a " * (most + 1))
    assert warning.endswith(f"at least {most + 1}.")
