"""Writes docs/openapi.json, the OpenAPI document, from which `make sdk` generates our clients.

The stored document is what clients rely on: a change that breaks them is refused unless the version moves.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.openapi_changes import breaking_changes, version_allows_breaks

from imagegen.app import create_app
from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.loaders import SPECS
from imagegen.settings import Settings

Json = dict[str, Any]

STORED = Path(__file__).parents[1] / "docs" / "openapi.json"


def document() -> Json:
    """The document of a service with the shipped configuration."""
    with TemporaryDirectory() as folder:
        given: dict[str, Any] = {"data_dir": Path(folder), "public_url": ""}
        settings = Settings(**given)
        return create_app(settings, load_catalog(default_config(), SPECS)).openapi()


def written(it: Json) -> str:
    return json.dumps(it, indent=1, ensure_ascii=False) + "\n"


def refused(old: Json, new: Json) -> list[str]:
    """The changes that break clients and that the version does not allow."""
    if version_allows_breaks(old["info"]["version"], new["info"]["version"]):
        return []
    return breaking_changes(old, new)


def main() -> int:
    """0, or 1 if a change breaks clients and the version has not moved; then nothing is written."""
    new = document()
    if STORED.exists() and (changes := refused(json.loads(STORED.read_text()), new)):
        print("These changes break clients. Undo them, or move the version in pyproject.toml:", file=sys.stderr)
        print("\n".join(f"  {change}" for change in changes), file=sys.stderr)
        return 1
    STORED.write_text(written(new))
    return 0


if __name__ == "__main__":
    sys.exit(main())
