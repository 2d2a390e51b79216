"""What every child process of the service does at its start, and which variables it does not get."""

import os
import signal
import threading


def is_secret(variable: str) -> bool:
    """Whether a variable is hidden from every child: the secrets of webhooks and of the bucket for pictures."""
    return variable == "IMAGEGEN_WEBHOOK_SECRETS" or variable.startswith("AWS_")


def follow_parent() -> None:
    """Exit when the parent exits for any reason: it holds our stdin open, which closes then."""
    threading.Thread(target=_leave_with_parent, name="lifeline", daemon=True).start()


def _leave_with_parent() -> None:
    os.read(0, 1)
    os._exit(0)


def ignore_signals() -> None:
    """Let the parent decide when to exit: Ctrl-C and a service manager's SIGTERM reach the whole process group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
