"""`python -m ds2d2_yolo.datasets FORMAT SOURCE [DEST] key=value ...`."""

import sys

from ds2d2_yolo.cli import run
from ds2d2_yolo.converting import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
