"""For tests and for a Python prompt: a model family without weights, a scripted engine, a clock, a whole service.

Nothing in the service imports this package. `python -m imagegen.testing` is the `imagegen` command with the family
`fake`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from imagegen import loaders
from imagegen.catalog.catalog import ModelSpec
from imagegen.loaders.base import Family, specs_of
from imagegen.testing.fake import FakeModelLoader, FakeSpec

#: The families of the product, and `fake`.
FAMILIES: Mapping[str, Family] = MappingProxyType({**loaders.FAMILIES, "fake": Family(FakeSpec, FakeModelLoader())})

#: Type word -> spec class, as the catalog reads them.
SPECS: Mapping[str, type[ModelSpec]] = specs_of(FAMILIES)

#: The name of the table: what `create_app()`, `Service()` and `EngineOptions` take as `families`.
WITH_FAKE = "imagegen.testing:FAMILIES"
