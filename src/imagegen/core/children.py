"""What every child process of the service does at its start, and what it is not told."""

import os
import signal
import threading


def is_secret(variable: str) -> bool:
    """Whether no child gets to see it: what signs webhooks, and what opens the bucket for pictures."""
    return variable == "IMAGEGEN_WEBHOOK_SECRETS" or variable.startswith("AWS_")


def follow_parent() -> None:
    """Leave when the parent does, however that ends: stdin, which it holds open, closes then."""
    threading.Thread(target=_leave_with_parent, name="lifeline", daemon=True).start()


def _leave_with_parent() -> None:
    os.read(0, 1)
    os._exit(0)


def ignore_signals() -> None:
    """Ctrl-C and a service manager's SIGTERM reach the whole process group; when to end is the parent's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
