"""docs/worked-changes.md: each diff applies to the present files."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "worked-changes.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")[1:]}


class Hunk(NamedTuple):
    """A place of a diff: the lines that are there, and those that are there afterwards."""

    file: str
    old: list[str]
    new: list[str]


def hunks_of(text: str) -> list[Hunk]:
    """The hunks of all diffs of a text. Fails if the counts in the head of one are wrong."""
    found = []
    for diff in re.findall(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^(?=--- )", diff, flags=re.MULTILINE)[1:]:
            head, *hunks = re.split(r"^(?=@@ )", part, flags=re.MULTILINE)
            file = re.fullmatch(r"--- a/(\S+)\n\+\+\+ b/(\S+)\n", head)
            assert file is not None, head
            assert file[1] == file[2]
            assert hunks
            found += [_hunk(file[1], hunk) for hunk in hunks]
    return found


def _hunk(file: str, text: str) -> Hunk:
    head, *lines = text.splitlines()
    counts = re.match(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", head)
    assert counts is not None, head
    # An empty line of context has lost its space: files of this repository have no spaces at the end of a line.
    old = [line[1:] for line in lines if line[:1] in ("", " ", "-")]
    new = [line[1:] for line in lines if line[:1] in ("", " ", "+")]
    assert (len(old), len(new)) == (int(counts[1] or 1), int(counts[2] or 1)), head
    return Hunk(file, old, new)


@pytest.mark.parametrize("change", SECTIONS)
def test_the_lines_around_each_change_are_in_its_file(change: str) -> None:
    hunks = hunks_of(SECTIONS[change])
    assert hunks
    for hunk in hunks:
        text = "\n" + (ROOT / hunk.file).read_text()
        assert "\n" + "\n".join(hunk.old) + "\n" in text, f"{hunk.file} has changed; change the diff of '{change}'"
        assert "\n" + "\n".join(hunk.new) + "\n" not in text, f"{hunk.file} has this change; write another example"


def test_there_is_an_example_of_each_usual_change() -> None:
    assert list(SECTIONS) == [
        "A field of models.yaml",
        "A field of a response",
        "A route",
        "A model family",
        "An event",
    ]
