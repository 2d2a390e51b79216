"""Parts: the components of the models in memory. Models share equal parts (T5, CLIP, VAE)."""

import filecmp
import gc
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakSet

from imagegen.loaders.folder import weight_files
from imagegen.loaders.host_copy import HostCopy, tensor_bytes

#: Prefixes of the names of parts that models may share: no option and no LoRA of an entry changes these parts.
SHAREABLE = ("text_encoder", "vae", "image_encoder")

#: The hub's cache names a large file by the sha256 of its content.
_BLOB = re.compile(r"[0-9a-f]{64}")


class Source(NamedTuple):
    """The files and options that a part is made from. Two parts with the same content and treatment are equal."""

    #: Library and class, as model_index.json has them.
    kind: tuple[str, ...]
    #: Its config.json, without the keys that only name its origin.
    config: str
    files: tuple[Path, ...]
    #: Size and time of each file when it was read.
    stamps: tuple[tuple[int, int], ...]
    #: Everything else that changes the result of the load: dtype, device, options.
    treatment: Hashable

    @classmethod
    def of(cls, folder: Path, name: str, kind: Sequence[str], treatment: Hashable, copy: str | None = None) -> Self:
        """The source of a part in a checked pipeline's folder. `copy`: the variant of its weights, such as `fp16`."""
        files = tuple(weight_files(folder, name, copy))
        return cls(tuple(kind), _config(folder / name / "config.json"), files, tuple(map(_stamp, files)), treatment)

    @property
    def name(self) -> str:
        """A hash. Equal names mean equal content. Equal files outside the hub's cache can have different names."""
        contents = [
            (blob, size) if _BLOB.fullmatch(blob := file.resolve().name) else (str(file), size, time_ns)
            for file, (size, time_ns) in zip(self.files, self.stamps, strict=True)
        ]
        made_of = repr((self.kind, self.config, contents, self.treatment))
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def same(self, other: "Source") -> bool:
        """Whether the content is the same, by the hashes in the hub's cache or by a comparison byte for byte."""
        if (self.kind, self.config, self.treatment) != (other.kind, other.config, other.treatment):
            return False
        if [size for size, _ in self.stamps] != [size for size, _ in other.stamps]:
            return False
        if self.stamps != tuple(map(_stamp, self.files)):
            return False  # the files have changed since they were read
        return all(_same_content(mine, theirs) for mine, theirs in zip(self.files, other.files, strict=True))


def _config(file: Path) -> str:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""  # opening the part reports the error
    notes = ("_name_or_path", "_diffusers_version", "transformers_version")
    return json.dumps({key: value for key, value in config.items() if key not in notes}, sort_keys=True)


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:
        return (-1, -1)
    return stat.st_size, stat.st_mtime_ns


def _same_content(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    if one == other:
        return True
    if _BLOB.fullmatch(one.name) and _BLOB.fullmatch(other.name):
        return one.name == other.name
    return filecmp.cmp(one, other, shallow=False)


class Part:
    """One component in memory, used by any number of models."""

    def __init__(self, module: Any, source: Source | None = None, home: HostCopy | None = None) -> None:
        """Without a source, other models cannot share it. Without a home, it stays on the device until it is freed."""
        self.module = module
        self.source = source
        #: The name of its source, equal in all models that share it; None: it cannot be shared.
        self.name = source.name if source else None
        self._home = home
        self._users = 0

    @property
    def bytes(self) -> int:
        """The bytes of its weights."""
        return tensor_bytes([self.module])

    @property
    def host_bytes(self) -> int:
        """The bytes of its copy in host memory."""
        return self._home.bytes if self._home else 0

    @property
    def missing_bytes(self) -> int:
        """The bytes of host memory that `keep` will take."""
        return self._home.missing_bytes if self._home else 0

    def enter(self) -> int:
        """Count one more user on the device, and copy the part there if needed. Returns the copied bytes."""
        moved = self._home.to_device() if self._users == 0 and self._home else 0
        self._users += 1
        return moved

    def keep(self) -> None:
        """Make a copy in host memory. From now on the part moves there when no model on the device uses it."""
        if self._home:
            self._home.keep()

    def leave(self) -> None:
        """Count one user on the device less. After the last one, move the part to host memory if `keep` was called."""
        self._users -= 1
        if self._users == 0 and self._home and self._home.kept:
            self._home.to_host()


class Parts:
    """The parts in memory that models can share. Only models keep them alive, and `hold` until `let_go`."""

    def __init__(self) -> None:
        self._known: WeakSet[Part] = WeakSet()
        self._held: list[Part] = []

    def find(self, source: Source) -> Part | None:
        """The part in memory that has the same source; None: there is none."""
        return next((part for part in list(self._known) if part.source and part.source.same(source)), None)

    def add(self, part: Part) -> None:
        """Make a part available to other models."""
        self._known.add(part)

    def hold(self, parts: Iterable[Part]) -> None:
        """Keep those of these parts that models can share on the device until `let_go`."""
        for part in parts:
            if part in self._known:
                part.enter()
                self._held.append(part)

    def let_go(self) -> None:
        """Release the held parts, after the next model has taken those that it shares."""
        if not self._held:
            return
        for part in self._held:
            part.leave()
        self._held.clear()
        gc.collect()
