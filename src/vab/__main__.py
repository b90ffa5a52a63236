"""``python -m vab`` is ``vab``."""

from vab.cli import main

if __name__ == "__main__":
    main()
