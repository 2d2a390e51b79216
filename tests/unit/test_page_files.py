"""The files of the page: small, whole, in two languages, and nothing in them that its policy forbids."""

import gzip
import json
import re
from hashlib import sha256

import pytest

from imagegen.api.web.routes import FOLDER, MEDIA_TYPES

#: All that a browser may fetch.
FILES = {str(path.relative_to(FOLDER)): path for path in FOLDER.rglob("*.*") if path.suffix in MEDIA_TYPES}
MODULES = {name: path.read_text() for name, path in FILES.items() if name.endswith(".mjs")}
OWN = {name: text for name, text in MODULES.items() if not name.startswith("vendor/")}
LOCALES = sorted(name for name in MODULES if name.startswith("locales/"))

#: Bytes of the whole page in one language, gzipped.
MOST = 60_000


def keys_of(locale: str) -> set[str]:
    return set(re.findall(r'^  "?([\w.-]+)"?:(?: |$)', MODULES[locale], re.MULTILINE))


@pytest.mark.parametrize("locale", LOCALES)
def test_the_page_is_at_most_60_kb(locale: str) -> None:
    loaded = [path for name, path in FILES.items() if name not in LOCALES or name == locale]
    assert sum(len(gzip.compress(path.read_bytes())) for path in loaded if path.suffix != ".txt") <= MOST


def test_the_vendored_files_are_those_of_the_list() -> None:
    listed = json.loads((FOLDER / "vendor" / "vendored.json").read_text())
    assert {f"vendor/{name}" for name in listed} == {name for name in MODULES if name.startswith("vendor/")}
    licences = (FOLDER / "vendor" / "licences.txt").read_text()
    for name, about in listed.items():
        assert sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == about["sha256"], name
        for package, of in about["packages"].items():
            assert f"{package} {of['version']}" in licences
            assert of["licence"] in ("MIT", "Apache-2.0")


def test_nothing_is_evaluated_and_nothing_comes_from_elsewhere() -> None:
    for name, text in MODULES.items():
        assert not re.search(r"\beval\(|new Function|Function\(|document\.write|setAttribute\(\s*.style", text), name
    for name, path in FILES.items():
        addresses = re.findall(r"https?://[^\s\"'`)$]+", path.read_text())
        assert name == "vendor/licences.txt" or set(addresses) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xhtml",
            "http://www.w3.org/1998/Math/MathML",
        }, name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|style=", page)


def test_all_languages_have_the_same_texts() -> None:
    first, *others = map(keys_of, LOCALES)
    assert len(first) > 150
    assert all(other == first for other in others)


def test_every_text_that_is_used_is_there_and_no_other() -> None:
    code = "\n".join(text for name, text in OWN.items() if name not in LOCALES)
    used = set(re.findall(r'\b(?:t|has)\(\s*"([\w.-]+)"', code)) | set(re.findall(r'"([\w.-]+)"', code))
    families = set(re.findall(r"`([a-z]+[.-])\$\{", code))
    known = keys_of(LOCALES[0])
    assert {key for key in re.findall(r'\bt\(\s*"([\w.-]+)"', code)} <= known
    assert [key for key in known - used if not key.startswith(tuple(families))] == []


@pytest.mark.parametrize("name", sorted(OWN))
def test_each_module_says_what_it_is_and_imports_what_is_there(name: str) -> None:
    assert OWN[name].startswith("// ")
    for imported in re.findall(r'^import .* from "([^"]+)"', OWN[name].partition("// -- the code")[0], re.MULTILINE):
        assert imported.startswith("."), imported
        assert (FILES[name].parent / imported).resolve() in FILES.values(), imported
