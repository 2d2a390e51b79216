"""The reference pages name everything that there is."""

from pathlib import Path

import pytest

from imagegen.api.problems import STATUS
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.loading import field_names
from imagegen.core.errors import FailureCode
from imagegen.loaders.flux import FluxSpec
from imagegen.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
API = (DOCS / "api.md").read_text()


@pytest.mark.parametrize("name", field_names(GlobalSettings) + field_names(FluxSpec))
def test_every_field_of_models_yaml_is_documented(name: str) -> None:
    assert f"`{name}`" in CONFIGURATION


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_process_setting_is_documented(name: str) -> None:
    assert f"`IMAGEGEN_{name.upper()}`" in CONFIGURATION


@pytest.mark.parametrize("code", [*STATUS, *FailureCode])
def test_every_code_is_documented(code: str) -> None:
    assert f"`{code}`" in API


def test_every_endpoint_is_documented(shipped: Catalog, tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), shipped)
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in API
