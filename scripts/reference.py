"""Writes what is made from the classes of models.yaml: docs/models-yaml.md and config/models.schema.json."""

import json
from pathlib import Path

from imagegen.catalog.schema import json_schema, reference
from imagegen.loaders import SPECS

ROOT = Path(__file__).parents[1]


def made() -> dict[Path, str]:
    """Each file, and what must be in it."""
    return {
        ROOT / "docs" / "models-yaml.md": reference(SPECS),
        ROOT / "config" / "models.schema.json": json.dumps(json_schema(SPECS), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)
