"""The folders of real clients, without running them: `make conformance` does."""

import ast

from tests.conformance.__main__ import CLIENTS, known_clients, python_packages


def test_each_client_has_one_list_of_packages_and_one_check_for_it() -> None:
    for name in known_clients():
        files = {path.name for path in (CLIENTS / name).iterdir()}
        assert {"requirements.txt", "check.py"} <= files or {"package.json", "check.mjs"} <= files, name
        assert not {"requirements.txt", "package.json"} <= files, name
        for script in (CLIENTS / name).glob("*.py"):
            ast.parse(script.read_text(), name)


def test_the_names_of_packages_are_read_without_versions_extras_and_comments() -> None:
    text = "# the client\nopenai==3.57.0\n\nhttpx[http2]>=0.28 ; python_version > '3'\npillow # pictures\n"
    assert python_packages(text) == ["openai", "httpx", "pillow"]
