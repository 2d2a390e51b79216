"""Logging: one event a line on stderr, as JSON unless stderr is a terminal. Prompts are not logged.

Each line has the ids that are bound in its context (structlog.contextvars): `request_id`, `task_id`, `model`.
"""

import logging
import re
import sys
import threading
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

#: The user and password of a URL, a token of the hub, an API key, a secret of webhooks: as in errors. No `\b` before
#: them: in JSON the end of a line is the letters `\n`.
_SECRETS = re.compile(r"(?<=://)[^\s/?#\"'\\]*@|hf_[A-Za-z0-9]{20,}|ig_[A-Za-z0-9]{43}|whsec_[A-Za-z0-9+/]{32,}=*")


#: Every secret has one of these. To look for them takes a thirtieth of the time of the expression, which is half of
#: the time of a whole line.
_MARKS = ("@", "hf_", "ig_", "whsec_")


def configure(level: str = "INFO", libraries: int = logging.WARNING) -> None:
    """Set up structlog, and the same format for libraries, whose messages are logged from the level `libraries` on."""
    human = sys.stderr.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # structlog's own traceback for terminals would show the values of variables: keys, tokens, prompts.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    last: list[Processor] = [
        structlog.processors.format_exc_info,
        *((_printable, console) if human else (structlog.processors.JSONRenderer(), _without_del)),
        _without_secrets,
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=libraries, handlers=[handler])


class _Stderr:
    """The present stderr. Lines that it refuses are lost, because an error of the log would stop the tasks."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a broken pipe or a full disk; a closed file
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def log_unhandled() -> None:
    """Log what Python itself would write to stderr: warnings, and unhandled exceptions."""
    logging.captureWarnings(True)
    sys.excepthook = _log_unhandled
    threading.excepthook = lambda it: _log_unhandled(it.exc_type, it.exc_value, it.exc_traceback)


def _log_unhandled(kind: type[BaseException], error: BaseException | None, traceback: object) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger(__name__).critical("unhandled_error", exc_info=error)


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape characters that control a terminal: DEL, C1, and those that change the direction of text."""
    traceback = {name: "\n".join(map(_escaped, event[name].split("\n"))) for name in ("exception",) if name in event}
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in event.items()} | traceback


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


def _without_secrets(_: WrappedLogger, __: str, line: EventDict) -> str:
    text = str(line)
    if not any(mark in text for mark in _MARKS):
        return text
    return _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "***", text)


def _without_del(_: WrappedLogger, __: str, line: EventDict) -> str:
    """Escape DEL: JSON escapes all other control characters."""
    return str(line).replace("\x7f", "\\u007f")
