"""The table of model families. One line adds a family; `type` in models.yaml is its key."""

from collections.abc import Mapping
from types import MappingProxyType

from imagegen.catalog.catalog import ModelSpec
from imagegen.loaders.base import Family, specs_of
from imagegen.loaders.flux import FluxModelLoader, FluxSpec
from imagegen.loaders.gguf import GGUFModelLoader, GGUFSpec
from imagegen.loaders.nunchaku import NunchakuModelLoader, NunchakuSpec
from imagegen.loaders.other import OtherModelLoader, OtherSpec
from imagegen.loaders.stable_diffusion import StableDiffusionModelLoader, StableDiffusionSpec

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "flux": Family(FluxSpec, FluxModelLoader()),
        "stable_diffusion": Family(StableDiffusionSpec, StableDiffusionModelLoader()),
        "gguf": Family(GGUFSpec, GGUFModelLoader()),
        "flux_nunchaku": Family(NunchakuSpec, NunchakuModelLoader()),
        "nunchaku": Family(NunchakuSpec, NunchakuModelLoader()),
        "diffusers": Family(OtherSpec, OtherModelLoader()),
    }
)

#: Type word -> spec class, as the catalog reads them.
SPECS: Mapping[str, type[ModelSpec]] = specs_of(FAMILIES)

#: The name of the table, for `families_named()`.
PRODUCT = "imagegen.loaders:FAMILIES"
