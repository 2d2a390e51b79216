"""The table of cards in docs/models.md: the output of the script, and entries that the catalog accepts."""

import json

import pytest
from scripts import card_table
from scripts.card_table import CARDS, GB, GIB, MODELS, USABLE, Model, best, entries, ways

from imagegen.catalog.loading import parse_catalog
from imagegen.loaders import SPECS

FLUX = MODELS[0]


def test_the_page_has_the_table_that_the_script_makes() -> None:
    assert card_table.PAGE.read_text() == card_table.page(), "run `python scripts/card_table.py`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_way_is_an_entry_that_the_catalog_takes(model: Model) -> None:
    for way in ways(model):
        written = card_table.written(model, way)
        catalog = parse_catalog(json.dumps({"models": {"a": written}}), SPECS)
        assert catalog.models["a"].model_dump().items() >= dict(way.adds).items()


def test_every_cell_of_the_table_is_such_an_entry() -> None:
    shown = list(entries())
    assert len(shown) == sum(best(model, card) is not None for model in MODELS for card in CARDS)
    parse_catalog(json.dumps({"models": {f"m{number}": entry for number, entry in enumerate(shown)}}), SPECS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_larger_card_has_no_worse_way_and_none_takes_more_than_there_is(model: Model) -> None:
    order = [way.words for way in ways(model)]
    found = [way for card in CARDS if (way := best(model, card)) is not None]
    places = [order.index(way.words) for way in found]
    assert places == sorted(places, reverse=True)
    for card in CARDS:
        way = best(model, card)
        assert way is None or way.takes <= USABLE * card * GIB


def test_the_rule_adds_what_is_on_the_device_in_the_largest_phase() -> None:
    takes = {way.words: way.takes / GB for way in ways(FLUX)}
    # transformer 23.803, CLIP 0.246, T5 9.525, VAE 0.168; decoding 1.61 and half of it again
    assert takes["nothing"] == pytest.approx(23.803 + 0.246 + 9.525 + 0.168 + 1.5 * 1.61)
    # while the prompt is encoded, T5 and 0.3 are there as well
    assert takes["`cpu_offload: encoders`"] == pytest.approx(23.803 + 0.168 + 9.525 + 0.3)
    # the transformer alone, and the activations of a step
    assert takes["`cpu_offload: model`"] == pytest.approx(23.803 + 1.5 * 0.92)
    assert takes["`cpu_offload: group`"] == pytest.approx(2 * 0.263 + 1.5 * 1.61)


def test_measured_sizes_override_computed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "| measured |" not in card_table.table()
    monkeypatch.setattr(card_table, "MEASURED", {(FLUX.name, "nothing"): 35 * GB})
    assert "| 48, 80 GB | nothing | 35.0 GB | measured |" in card_table.table()
