"""python -m imagegen"""

from imagegen.cli import main

if __name__ == "__main__":
    main()
