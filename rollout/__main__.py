"""The command `rollout`, also as `python -m rollout`."""

import faulthandler
import signal

# A segmentation fault of an environment that is made in this process, to see its spaces, names its
# line.
faulthandler.enable(all_threads=False)

# Ctrl-C simply ends a command, and at once, also while it is still importing. `rollout train` has
# handlers of its own while there is something to save.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from rollout.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
