"""The `imagegen` command; `python -m imagegen` is the same."""

import os
import signal
import sys


def main() -> None:
    """Entry point."""
    if sys.argv[1:] == ["health"]:  # health checks of containers: without the imports of the other commands
        from imagegen.probe import main as ask

        sys.exit(ask())
    if sys.argv[1:2] == ["serve"]:
        # Set before the imports, which take a second, so that a service that is stopped meanwhile exits with 0.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from imagegen.cli import main as run

    run()


if __name__ == "__main__":
    main()
