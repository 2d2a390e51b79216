"""The `imagegen` command; `python -m imagegen` is the same."""

import os
import signal
import sys


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["serve"]:
        # Before the imports, which take a second: a service that is stopped while it starts ends with 0, too.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from imagegen.cli import main as run

    run()


if __name__ == "__main__":
    main()
