"""Parts: the components of the models in memory. What two models have alike (T5, CLIP, VAE) is there once."""

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

#: How the names of the parts begin that models may share: no option and no LoRA of an entry changes these.
SHAREABLE = ("text_encoder", "vae", "image_encoder")

#: The hub's cache names a large file by the sha256 of its content.
_BLOB = re.compile(r"[0-9a-f]{64}")


class Source(NamedTuple):
    """What a part is made of. Two parts of the same content and treatment are interchangeable."""

    #: Library and class, as model_index.json has them.
    kind: tuple[str, ...]
    #: Its config.json, without what only tells where it came from.
    config: str
    files: tuple[Path, ...]
    #: Size and time of each file when it was read.
    stamps: tuple[tuple[int, int], ...]
    #: Whatever else decides what it becomes: dtype, device, options.
    treatment: Hashable

    @classmethod
    def of(cls, folder: Path, name: str, kind: Sequence[str], treatment: Hashable, copy: str | None = None) -> Self:
        """The source of a part in a pipeline's folder, which has been checked. `copy`: of its weights."""
        files = tuple(weight_files(folder, name, copy))
        return cls(tuple(kind), _config(folder / name / "config.json"), files, tuple(map(_stamp, files)), treatment)

    @property
    def name(self) -> str:
        """Equal names mean the same content; files outside the hub's cache that are only equal have several."""
        contents = [
            (blob, size) if _BLOB.fullmatch(blob := file.resolve().name) else (str(file), size, time_ns)
            for file, (size, time_ns) in zip(self.files, self.stamps, strict=True)
        ]
        made_of = repr((self.kind, self.config, contents, self.treatment))
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def same(self, other: "Source") -> bool:
        """Whether the content is the same: known from the hub's names, or compared byte for byte."""
        if (self.kind, self.config, self.treatment) != (other.kind, other.config, other.treatment):
            return False
        if [size for size, _ in self.stamps] != [size for size, _ in other.stamps]:
            return False
        if self.stamps != tuple(map(_stamp, self.files)):
            return False  # what was read is no longer what lies there
        return all(_same_content(mine, theirs) for mine, theirs in zip(self.files, other.files, strict=True))


def _config(file: Path) -> str:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""  # whoever opens the part will say so
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
        """Without a source nobody else can use it; without a home it stays on the device as long as it lives."""
        self.module = module
        self.source = source
        #: What the models that have it call it; None: no other model can have it.
        self.name = source.name if source else None
        self._home = home
        self._users = 0

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return tensor_bytes([self.module])

    @property
    def host_bytes(self) -> int:
        """Of its copy in host memory."""
        return self._home.bytes if self._home else 0

    @property
    def missing_bytes(self) -> int:
        """Of host memory that `keep` will take."""
        return self._home.missing_bytes if self._home else 0

    def enter(self) -> int:
        """A model on the device begins to use it; the bytes that were copied for that."""
        moved = self._home.to_device() if self._users == 0 and self._home else 0
        self._users += 1
        return moved

    def keep(self) -> None:
        """Have a copy in host memory from now on, to which it goes when no model on the device uses it."""
        if self._home:
            self._home.keep()

    def leave(self) -> None:
        """A model on the device uses it no longer. After the last one it goes to host memory if it is kept there."""
        self._users -= 1
        if self._users == 0 and self._home and self._home.kept:
            self._home.to_host()


class Parts:
    """Which parts are in memory, as long as a model has them or the next one may want them."""

    def __init__(self) -> None:
        self._known: WeakSet[Part] = WeakSet()
        self._held: list[Part] = []

    def find(self, source: Source) -> Part | None:
        """The part in memory that is made of the same."""
        return next((part for part in list(self._known) if part.source and part.source.same(source)), None)

    def add(self, part: Part) -> None:
        """Let other models find it."""
        self._known.add(part)

    def hold(self, parts: Iterable[Part]) -> None:
        """Keep those that another model may share where they are until `let_go`."""
        for part in parts:
            if part in self._known:
                part.enter()
                self._held.append(part)

    def let_go(self) -> None:
        """The next model has taken what it wants of those that were held."""
        if not self._held:
            return
        for part in self._held:
            part.leave()
        self._held.clear()
        gc.collect()
