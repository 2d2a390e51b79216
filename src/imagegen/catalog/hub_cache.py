"""The hub's cache on this machine (HF_HOME), in the documented layout of huggingface_hub.

models--ORG--NAME/blobs/<sha256 or git's sha1>      the contents
                  snapshots/<commit>/<path>         links to them
                  refs/<branch or tag>              the commit that was found there
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.pipeline_files import INDEX, lacking, part_paths
from imagegen.storage.files import open_regular

#: The answer of `lacks` for a repository of which the cache has nothing.
EVERYTHING = "everything"

#: The most levels of folders in a repository. Real repositories have two.
_MAX_DEPTH = 8

#: Bytes of a ref that are read: a commit has 40.
_MAX_REF = 100

#: Bytes of a model_index.json, and of a list of shards, that are read. The largest known list has 6 MB.
MAX_INDEX = 64 * 2**20

_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_root() -> Path:
    """The cache's folder, from HF_HUB_CACHE or HF_HOME."""
    # Imported here: it takes 30 ms, and most processes do not need it.
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


class HubCache:
    """One repository's folder in the cache."""

    def __init__(self, repo: str, root: Path | None = None) -> None:
        self.folder = (root or cache_root()) / f"models--{repo.replace('/', '--')}"

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def part(self, digest: str) -> Path:
        """The partial file of a blob."""
        return self.folder / "blobs" / f"{digest}.imagegen.incomplete"

    def snapshot(self, revision: str | None) -> Path | None:
        """The folder of a branch, tag or commit, whether complete or not; None if there is none."""
        commit = self._commit(revision or "main")
        folder = self.folder / "snapshots" / commit if commit else None
        return folder if folder is not None and folder.is_dir() else None

    def _commit(self, revision: str) -> str | None:
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            with open_regular(self.folder / "refs" / revision) as file:
                commit = file.read(_MAX_REF).decode().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if _COMMIT.fullmatch(commit) else None

    def link(self, commit: str, path: str, digest: str) -> None:
        """Link `path` of a snapshot to a blob."""
        place = self.folder / "snapshots" / commit / path
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f"{place.name}.{os.getpid()}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(os.path.relpath(self.blob(digest), place.parent))
        new.replace(place)

    def set_ref(self, revision: str, commit: str) -> None:
        """Make `revision` refer to a commit: loaders find its snapshot from now on."""
        if revision == commit:
            return
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}.new")
        new.write_text(commit)
        new.replace(ref)


def is_here(files: HubFiles, root: Path | None = None) -> bool:
    """Whether the cache holds all the files, so that a load needs no network."""
    return lacks(files, root) is None


def lacks(files: HubFiles, root: Path | None = None) -> str | None:
    """The first file or part that the cache does not hold, or EVERYTHING; None: it holds all of it."""
    folder = HubCache(files.repo, root).snapshot(files.revision)
    return EVERYTHING if folder is None else lacks_in(folder, files)


def lacks_in(folder: Path, files: HubFiles) -> str | None:
    """The first of these files or parts that a folder does not hold; None: it holds all of them."""
    if files.files or files.by_precision:
        either = [name for _, name in files.by_precision]
        if either and not any((folder / name).is_file() for name in either):
            return either[0]
        return next((name for name in files.files if not (folder / name).is_file()), None)
    if files.part is not None:
        return files.part if part_paths(paths_in(folder), files.part, files.dtype) is None else None
    index = index_in(folder)
    return INDEX if index is None else lacking(paths_in(folder), index, files.without, files.dtype)


def paths_in(folder: Path, *, dangling: bool = False) -> list[str]:
    """The files of a folder, by their paths in the repository, also those in linked folders.

    `dangling`: links to files that are not there count, too.
    """
    exists = os.path.lexists if dangling else os.path.isfile
    found = []
    for home, folders, names in os.walk(folder, followlinks=True):
        here = Path(home).relative_to(folder)
        if len(here.parts) >= _MAX_DEPTH:
            folders.clear()  # otherwise a link to a parent folder would never end
        found += [(here / name).as_posix() for name in names if exists(os.path.join(home, name))]
    return found


def index_in(folder: Path) -> dict[str, Any] | None:
    """The model_index.json of a folder; None: there is none that can be read."""
    try:
        with open_regular(folder / INDEX) as file:
            index = json.loads(file.read(MAX_INDEX))
    except (OSError, ValueError, RecursionError):
        return None
    return index if isinstance(index, dict) else None
