"""What every child process of the service does at its start, and which environment variables it must not get."""

import os
import re
import signal
import threading

#: The words that names of secrets end with, or that stand before another word: HF_TOKEN, DB_PASSWORD, SOME_API_KEY.
_SECRET = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE)_?KEYS?)(_|$)", re.IGNORECASE
)

#: A URL with a user or a password: https://user:password@host.
_WITH_USER = re.compile(r"://[^\s/?#]*@")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is or has a secret, of this service or of any other program."""
    # OpenTelemetry's headers hold tokens of the collector.
    return bool(name.startswith(("AWS_", "OTEL_")) or _SECRET.search(name) or _WITH_USER.search(value))


def follow_parent() -> None:
    """Exit as soon as the parent has exited, for any reason. The parent holds this process's stdin open until then."""
    threading.Thread(target=_exit_when_stdin_closes, name="follow-parent", daemon=True).start()


def _exit_when_stdin_closes() -> None:
    os.read(0, 1)
    os._exit(0)


def ignore_signals() -> None:
    """Let the parent decide when to exit: Ctrl-C and a service manager's SIGTERM reach the whole process group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
