"""Importing: maps failed imports of libraries to errors, and records that the process must be replaced."""

import errno
import os
from types import TracebackType

from imagegen.core.errors import EngineError, EngineMissing, ImportFailed
from imagegen.core.wording import THE_LOG
from imagegen.gpu.memory import causes

#: The text in torch's error if torchvision is of another build. diffusers and transformers import torchvision if it
#: is installed.
_OTHER_BUILD = "torchvision::"

#: The errors of the system when no file can be written.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})


class Importing:
    """A context for imports, which can be entered many times. Raises ImportFailed or EngineMissing.

    After a failure, a second attempt in the same process fails for another reason: Python does not run the modules
    again that were imported before it, and torch cannot be extended twice. So the process must be replaced.
    """

    def __init__(self) -> None:
        #: Whether an import has failed.
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
            "The installed torchvision is of another build than torch, so no model can be loaded: "
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
