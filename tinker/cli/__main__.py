"""``python -m tinker.cli`` is the ``tinker`` command."""

import sys

from tinker.cli import main

if __name__ == "__main__":
    sys.exit(main())
