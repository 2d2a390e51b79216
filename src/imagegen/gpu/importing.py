"""Imports of libraries: what their failure means, and that a process cannot go on after it."""

import errno
import os
from types import TracebackType

from imagegen.core.errors import EngineError, EngineMissing, ImportFailed
from imagegen.core.wording import THE_LOG
from imagegen.gpu.memory import causes

#: Words of torch where torchvision is of another build. diffusers and transformers import it wherever it is installed.
_OTHER_BUILD = "torchvision::"

#: What the system says where no file can be written.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})


class Importing:
    """A context for imports, which may be entered any number of times. Raises ImportFailed or EngineMissing.

    Python does not run a module again that was imported before the failure, and torch does not let itself be extended
    twice, so that a second attempt in the same process fails for another reason.
    """

    def __init__(self) -> None:
        #: Whether an import failed half-way.
        self.failed = False

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        self.failed = True
        if not isinstance(error, EngineError):
            raise _in_words(error) from error


def _in_words(error: Exception) -> EngineError:
    chain = list(causes(error))
    if any(_OTHER_BUILD in str(cause) for cause in chain):
        return EngineMissing(
            "The installed torchvision is of another build than torch, so that no model loads: "
            "`pip uninstall torchvision`, then `make vision` for the one that matches."
        )
    if any(_is_about_temporary_files(cause) for cause in chain):
        folder = os.environ.get("TMPDIR") or "/tmp"
        return ImportFailed(
            f"The libraries cannot be imported: no temporary file can be written to {folder}. Make room there, or name "
            "another folder in TMPDIR."
        )
    return ImportFailed(f"The libraries cannot be imported ({type(chain[-1]).__name__}); {THE_LOG} has the details.")


def _is_about_temporary_files(cause: BaseException) -> bool:
    return isinstance(cause, OSError) and (cause.errno in _NO_ROOM or "temporary directory" in str(cause))
