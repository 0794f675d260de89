"""``python -m taskedge`` is ``taskedge``."""

import sys

from taskedge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
