"""Configurations of fake models."""

import json
from typing import Any

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.testing import SPECS


def fake_config(**models: dict[str, Any]) -> str:
    """The text of a models.yaml: each model with its fields (`FakeSpec`). Without models it has one, named `fake`.

    Pictures are 64 by 64 pixels and take four steps, unless the fields say otherwise.
    """
    entries = {
        model_id: {"name": model_id, "type": "fake", "base_size": 64, "steps": 4} | fields
        for model_id, fields in (models or {"fake": {}}).items()
    }
    return json.dumps({"models": entries})  # JSON is YAML


def fake_catalog(**models: dict[str, Any]) -> Catalog:
    """The catalog of `fake_config`. Raises ConfigError."""
    return parse_catalog(fake_config(**models), SPECS)
