"""`python -m torchkeep`, the same as `torchkeep`."""

import sys

from torchkeep.cli import main

if __name__ == "__main__":
    sys.exit(main())
