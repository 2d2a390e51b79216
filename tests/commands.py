"""The `imagegen` command in this process: the same answers, without the seconds that its imports take."""

import structlog
from typer.testing import CliRunner, Result

from imagegen.cli import app
from imagegen.loaders import PRODUCT


def command(*arguments: object, families: str = PRODUCT) -> Result:
    """What `imagegen` with these arguments prints, and its exit code. Raises what it does not handle."""
    logging = structlog.get_config()
    try:
        return CliRunner().invoke(
            app,
            [str(it) for it in arguments],
            obj=families,
            env={"IMAGEGEN_DEVICE": "cpu"},
            catch_exceptions=False,
        )
    finally:
        structlog.configure(**logging)
