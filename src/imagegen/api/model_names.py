"""The local model that a client means by a name of its own."""

from imagegen.catalog.catalog import Catalog


def local_model(name: str, catalog: Catalog) -> str:
    """The id of the model that `name` means; the name itself if it means none, which no admission accepts.

    A name is an id; or `org/name`, the repository of an entry, else its part after the slash is an id.
    """
    if name in catalog.models:
        return name
    for model, spec in catalog.models.items():
        if spec.hf_path is not None and spec.hf_path.partition("@")[0] == name:
            return model
    last = name.rpartition("/")[2]
    return last if last in catalog.models else name
