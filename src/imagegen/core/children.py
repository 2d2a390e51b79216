"""What every child process of the service does at its start, and which environment variables it must not get."""

import os
import signal
import threading


def is_secret(variable: str) -> bool:
    """Whether a variable is hidden from every child: the secrets of webhooks and of the bucket for pictures."""
    return variable == "IMAGEGEN_WEBHOOK_SECRETS" or variable.startswith("AWS_")


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
