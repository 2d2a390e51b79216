"""The folders of real clients, without running them: `make conformance` does."""

import ast
import re

from tests.conformance.__main__ import ADDRESS, CLIENTS, KEY, PAGE, known_clients, python_packages, snippet


def test_each_client_has_one_list_of_packages_and_one_check_for_it() -> None:
    for name in known_clients():
        files = {path.name for path in (CLIENTS / name).iterdir()}
        assert {"requirements.txt", "check.py"} <= files or {"package.json", "check.mjs"} <= files, name
        assert not {"requirements.txt", "package.json"} <= files, name
        for script in (CLIENTS / name).glob("*.py"):
            ast.parse(script.read_text(), name)


def test_the_names_of_packages_are_read_without_versions_extras_comments_and_options() -> None:
    text = "--find-links dist\n# the client\nopenai==3.57.0\n\nhttpx[http2]>=0.28 ; python_version > '3'\npillow # it\n"
    assert python_packages(text) == ["openai", "httpx", "pillow"]


def test_a_snippet_belongs_to_a_client_and_names_the_address_and_the_key() -> None:
    named = re.findall(r"^<!-- ([a-z0-9-]+) -->$", PAGE.read_text(), re.MULTILINE)
    assert set(named) <= set(known_clients())
    assert len(named) == len(set(named))
    for name in named:
        text = snippet(name)
        assert text is not None
        assert ADDRESS in text
        assert KEY in text
    assert snippet("nobody") is None
