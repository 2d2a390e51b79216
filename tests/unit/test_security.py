"""Properties of the whole code and of the whole API that keep attacks out, and the page that lists the attacks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imagegen
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog
from imagegen.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(imagegen.__file__).parent.rglob("*.py"))

#: Modules that run what they read, or send objects that do.
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop"}
#: Functions that do, of any module.
CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "numpy.load", "np.load"),
    *("os.system", "os.popen", "connection.send", "connection.recv"),
}
#: Classes that pickle what they pass on.
CLASSES = {"ProcessPoolExecutor", "Pool", "SimpleQueue", "Manager"}


def names(module: ast.Module) -> Iterator[str]:
    """What a module imports and calls, as written."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition("self.")[2].removeprefix("_")
            yield from (f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(SOURCES[0].parent)))
def test_no_module_unpickles_or_runs_text(file: Path) -> None:
    assert {*names(ast.parse(file.read_text()))} & {*MODULES, *CALLS, *CLASSES, "shell=True"} == set()


# -- the API -----------------------------------------------------------------------------------------------------------

#: Base64 of pictures, which the limit of the body bounds.
PICTURES = {"image", "mask"}


def unbounded(schema: dict[str, Any], schemas: dict[str, Any], at: str) -> Iterator[str]:
    """The places of values without a bound."""
    if "$ref" in schema:
        yield from unbounded(schemas[schema["$ref"].rpartition("/")[2]], schemas, at)
    for part in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from unbounded(part, schemas, at)
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, schemas, f"{at}.{name}")
    bounds = {*schema} | ({"pattern"} if {"enum", "const", "format"} & {*schema} else set())
    match schema.get("type"):
        case "integer" | "number":
            if not ({"minimum", "exclusiveMinimum"} & bounds and {"maximum", "exclusiveMaximum"} & bounds):
                yield at
        case "string":
            if not {"maxLength", "pattern"} & bounds and at.rpartition(".")[2] not in PICTURES:
                yield at
        case "array":
            if "maxItems" not in bounds:
                yield at
            yield from unbounded(schema["items"], schemas, f"{at}[]")


def test_every_value_in_the_openapi_document_has_a_bound(shipped: Catalog, tmp_path: Path) -> None:
    """Of bodies and of the query. Entries of models.yaml, whose fields depend on the family, have their own tests."""
    document = create_app(Settings(data_dir=tmp_path), shipped).openapi()
    found = list[str]()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts = [(it["name"], it["schema"]) for it in operation.get("parameters", ()) if it["in"] == "query"]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                parts.append(("body", content["schema"]))
            for name, schema in parts:
                found += unbounded(schema, document["components"]["schemas"], f"{method} {path} {name}")
    assert found == []


# -- the page ----------------------------------------------------------------------------------------------------------

ROWS = re.findall(r"^\| (\d+) \|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)


def test_there_is_a_row_for_each_known_fault() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 60


@pytest.mark.parametrize(("number", "tests"), [(number, tests) for number, _, _, tests in ROWS])
def test_each_row_names_tests_that_exist(number: str, tests: str) -> None:
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(\w+)`", tests)
    assert tests.count("`") == 2 * len(named) > 0
    for file, test in named:
        assert test in defined(ROOT / file), f"{file} has no {test}"


def defined(file: Path) -> set[str]:
    """The tests in a file: functions, and state machines, which are assigned."""
    found = set[str]()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.lower().startswith("test")}
