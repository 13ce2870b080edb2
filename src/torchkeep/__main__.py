"""`python -m torchkeep`, the same as `torchkeep`."""

import os
import signal
import sys

if "TORCHKEEP_TRAIN_OUTCOME" in os.environ:
    # One of the processes of a training, which `torchkeep.cli.processes` has started. Ctrl-C ends
    # all of them at once until a run minds it: who waits within PyTorch for one that has ended
    # would never get to the exception that Python raises.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from torchkeep.cli import main

if __name__ == "__main__":
    sys.exit(main())
