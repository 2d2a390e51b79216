"""Edits of a models.yaml: the text reads as intended afterwards, and no other line changes."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.builtin import default_config
from imagegen.catalog import changes as changes_of
from imagegen.catalog import editing
from imagegen.catalog.changes import Roots
from imagegen.catalog.editing import Change, NotEditable, Put, Remove
from imagegen.catalog.yaml import Document, YamlProblem, read
from imagegen.core.errors import ConfigInvalid, ModelExists, ModelNotFound
from imagegen.testing import SPECS

#: No path is refused.
ANYWHERE = Roots(Path("/"), (Path("/"),))

SHIPPED = default_config().read_text()


# The functions under test go from document to document; these go from text to text.


def edited(text: str, changes: Sequence[Change]) -> str:
    return editing.edited(read(text), changes).text


def with_model(text: str, *arguments: Any) -> str:
    return changes_of.with_model(read(text), *arguments).text


def with_changed_model(text: str, *arguments: Any) -> str:
    return changes_of.with_changed_model(read(text), *arguments).text


def without_model(text: str, model: str) -> str:
    return changes_of.without_model(read(text), model).text


def with_settings(text: str, fields: dict[str, Any]) -> str:
    return changes_of.with_settings(read(text), fields).text


def lines_changed(before: str, after: str) -> list[str]:
    """The lines of a diff."""
    marks = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in marks if not line.startswith(("---", "+++", "@@"))]


# -- only what was meant -----------------------------------------------------------------------------------------------


def test_a_changed_value_is_one_line_and_its_comment_stays() -> None:
    assert lines_changed(SHIPPED, with_settings(SHIPPED, {"auto_unload_minutes": 5})) == [
        "-  auto_unload_minutes: 30 # minutes without use after which a model is unloaded; 0: never",
        "+  auto_unload_minutes: 5 # minutes without use after which a model is unloaded; 0: never",
    ]


def test_a_new_field_is_one_line_at_the_end_of_its_entry() -> None:
    assert lines_changed(SHIPPED, with_changed_model(SHIPPED, "tiny", {"compile": True}, SPECS, ANYWHERE)) == [
        "+    compile: true"
    ]


def test_a_new_model_is_added_at_the_end_in_the_style_of_the_others() -> None:
    assert lines_changed(
        SHIPPED, with_model(SHIPPED, "mine", {"name": "Mine: #1", "type": "fake", "steps": 3}, SPECS, ANYWHERE)
    ) == [
        "+",
        "+  mine:",
        "+    name: 'Mine: #1'",
        "+    type: fake",
        "+    steps: 3",
    ]


def test_a_removed_model_takes_its_lines_and_one_empty_line_with_it_and_no_comment_of_others() -> None:
    gone = lines_changed(SHIPPED, without_model(SHIPPED, "flux.1-dev"))
    assert len(gone) == 1 + 13 + 1 + 1  # its id, its fields, a comment between them, and an empty line
    assert sorted(line for line in gone if "#" not in line)[:2] == ["-", "-    base_size: 1024"]
    first = lines_changed(SHIPPED, without_model(SHIPPED, "tiny"))
    assert first[0] == "-  tiny:"
    assert not any("#" in line for line in first)


def test_a_field_that_is_taken_out_is_one_line() -> None:
    assert lines_changed(SHIPPED, with_settings(SHIPPED, {"log_level": None})) == ["-  log_level: INFO"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n# the end\n"])
def test_every_way_of_writing_a_file_is_kept(ends: str, bom: str, last: str) -> None:
    lines = ["%s# top", "global:   # all", "    log_level:    DEBUG   # loud", "", "models:", "    a:  # first"]
    lines += ['        name:    "A"', "        type: fake", "", "    # second", "    b: {name: B,   type: fake}"]
    text = ends.join([*lines, "    c:", "        description: |", "            two", "            lines"]) % bom
    text += "\n        name: C\n        type: fake".replace("\n", ends) + last.replace("\n", ends)
    after = text
    after = with_changed_model(after, "a", {"steps": 3, "name": "AA"}, SPECS, ANYWHERE)
    after = with_changed_model(after, "b", {"steps": 4}, SPECS, ANYWHERE)
    after = with_changed_model(after, "c", {"description": "one line", "steps": 5}, SPECS, ANYWHERE)
    assert lines_changed(text, after) == [
        '-        name:    "A"',
        "+        name:    AA",
        "+        steps: 3",
        "-    b: {name: B,   type: fake}",
        '+    b: {name: B,   type: fake, "steps": 4}',
        "-        description: |",
        "-            two",
        "-            lines",
        "+        description: one line",
        "+        steps: 5",
    ]
    assert ("\r\n" in after) == (ends == "\r\n")
    assert after.startswith(bom)


def test_json_stays_json() -> None:
    text = json.dumps({"models": {"a": {"name": "A", "type": "fake"}}}, indent=2)
    after = with_model(
        with_changed_model(text, "a", {"steps": 3}, SPECS, ANYWHERE),
        "b",
        {"name": "ö", "type": "fake"},
        SPECS,
        ANYWHERE,
    )
    after = without_model(with_settings(after, {"max_queue": 9}), "a")
    assert json.loads(after) == {"models": {"b": {"name": "ö", "type": "fake"}}, "global": {"max_queue": 9}}


def test_a_section_that_is_missing_or_empty_is_filled() -> None:
    entry = "models:\n  a: {name: A, type: fake}\n"
    assert with_settings(entry, {"max_queue": 3}) == entry + "global:\n  max_queue: 3\n"
    assert with_settings("global: # none\n" + entry, {"max_queue": 3}) == 'global: {"max_queue": 3} # none\n' + entry


def test_a_value_that_is_the_same_touches_nothing() -> None:
    odd = "models:\n  a: {name: 'A' , type:   fake, steps: 0x10}\n"
    assert with_changed_model(odd, "a", {"name": "A", "steps": 16}, SPECS, ANYWHERE) == odd


# -- older names -------------------------------------------------------------------------------------------------------


def test_the_files_own_spelling_is_kept() -> None:
    old = "settings:\n  auto_unload_timeout: 45\nmodels:\n  a:\n    type: flux\n    huggingface_path: o/n\n"
    after = with_settings(with_changed_model(old, "a", {"hf_path": "o/m"}, SPECS, ANYWHERE), {"auto_unload_minutes": 5})
    assert after == old.replace("o/n", "o/m").replace("45", "5")
    assert "huggingface_path" not in with_changed_model(old, "a", {"hf_path": None}, SPECS, ANYWHERE)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_an_existing_model_cannot_be_added_and_a_missing_one_cannot_be_changed() -> None:
    with pytest.raises(ModelExists):
        with_model(SHIPPED, "tiny", {}, SPECS, ANYWHERE)
    with pytest.raises(ModelNotFound):
        with_changed_model(SHIPPED, "tinny", {}, SPECS, ANYWHERE)
    with pytest.raises(ModelNotFound):
        without_model(SHIPPED, "tinny")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.timeout(10)
@pytest.mark.parametrize("fields", [{"loras": deep(900)}, dict.fromkeys(map(str, range(5000)), 1)])
def test_an_edit_without_bounds_is_refused_before_the_work_begins(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        with_changed_model(SHIPPED, "tiny", fields, SPECS, ANYWHERE)
    with pytest.raises(ConfigInvalid):
        with_model(SHIPPED, "new", fields, SPECS, ANYWHERE)


@pytest.mark.parametrize("key", ["x" * 101, "a\nb", "\ud800"])
def test_a_key_that_is_no_name_is_refused(key: str) -> None:
    with pytest.raises(ConfigInvalid):
        with_changed_model(SHIPPED, "tiny", {key: 1}, SPECS, ANYWHERE)


def test_an_edit_that_would_read_as_something_else_is_not_made() -> None:
    with pytest.raises(NotEditable):
        edited("a:\n  b: |+\n    x\n\n", [Put(("a", "c"), 1)])


# -- any edit of any file ----------------------------------------------------------------------------------------------

WORDS = st.text(max_size=12) | st.sampled_from(
    ["no", "1e3", "~", "null", "0x1F", "2026-11-23", "a: b", "# c", "- d", "'"]
)
SCALARS = WORDS | st.integers() | st.booleans() | st.floats(allow_nan=False)
VALUES = SCALARS | st.lists(st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2), max_size=2)
KEYS = st.sampled_from(["a", "b", "c d", "35", "é", "true", "x"])
FILES = [
    "a: 1   # one\nb:\n  a: 'x'\n\n  # two\n  b: |\n    y\n\n    z\nc d:\n  - a: 1\n  - b: 2\n# end\n",
    '{"a": 1, "b": {"a": {}, "é": [1, 2]}}',
    "{\n  a: 1, # c\n  b: {\n    x: 1,\n  },\n}\n",
    "a:\nb: ~\n'35': >-\n  folded\n  text\ntrue: {}\n",
    'a: x\n   y\nb:\n    a:\n        é: 1\n    x: "m\n      n"',
]
CHANGES = st.lists(
    st.builds(Put, st.lists(KEYS, min_size=1, max_size=3).map(tuple), VALUES)
    | st.builds(Remove, st.lists(KEYS, min_size=1, max_size=3).map(tuple)),
    max_size=4,
)


def as_meant(data: Any, change: Put | Remove) -> Any:
    """The same edit on plain data, implemented independently."""
    node = data
    for key in change.path[:-1]:
        if not isinstance(node.get(key), dict):
            if isinstance(change, Remove):
                return data
            node[key] = {}
        node = node[key]
    if isinstance(change, Put):
        node[change.path[-1]] = change.value
    else:
        node.pop(change.path[-1], None)
    return data


def without_nothing(data: Any) -> Any:
    """An empty mapping equals None: in block style YAML writes both the same."""
    return {key: without_nothing(it) or None for key, it in data.items()} if isinstance(data, dict) else data


ENTRIES = "models:\n  a:\n    name: A\n    type: fake\n    steps: 3 # few\n  b: {name: B, type: fake}\n"


@pytest.mark.parametrize("text", [ENTRIES, ENTRIES.replace("a:", "c:").replace("b:", "a:"), '{"models": {"a": {}}}\n'])
def test_several_fields_change_as_if_one_after_the_other(text: str) -> None:
    path = ("models", "a")
    changes: list[Change] = [Put((*path, "name"), "AA"), Remove((*path, "type"))]
    changes += [Put((*path, "x"), 1), Put((*path, "y"), [2])]
    one_by_one = text
    for change in changes:
        one_by_one = edited(one_by_one, [change])
    assert edited(text, changes) == one_by_one


def test_several_fields_are_one_pass_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    document, passes = read(ENTRIES), list[str]()

    def counted(text: str) -> Document:
        passes.append(text)
        return read(text)

    monkeypatch.setattr(editing, "read", counted)
    fields = {f"field{number}": number for number in range(90)} | {"name": "AA", "type": None}
    new = changes_of.with_changed_model(document, "a", fields, SPECS, ANYWHERE)
    assert passes == [new.text]
    assert new.data["models"]["a"] == {"name": "AA", "steps": 3} | {f"field{n}": n for n in range(90)}


@settings(deadline=None)
@given(st.sampled_from(FILES), CHANGES)
def test_several_edits_read_as_one_after_the_other(text: str, changes: list[Put | Remove]) -> None:
    one_by_one = text
    try:
        for change in changes:
            one_by_one = edited(one_by_one, [change])
    except (NotEditable, YamlProblem):
        return
    assert without_nothing(read(edited(text, changes)).data) == without_nothing(read(one_by_one).data)


@settings(deadline=None)
@given(st.sampled_from(FILES), CHANGES)
def test_the_edited_text_reads_as_intended(text: str, changes: list[Put | Remove]) -> None:
    for change in changes:
        before = read(text).data
        try:
            text = edited(text, [change])
        except (NotEditable, YamlProblem):
            # Only what no entry looks like: text that YAML cannot hold, and files that one edit has emptied.
            assert (
                not str(change).isprintable() or "\\" in str(change) or not isinstance(before, dict) or len(before) < 2
            )
            return
        assert without_nothing(read(text).data) == without_nothing(as_meant(before, change))
