"""python -m imagegen.testing: the `imagegen` command, with the family `fake`."""

from imagegen.cli import main
from imagegen.testing import WITH_FAKE

if __name__ == "__main__":
    main(WITH_FAKE)
