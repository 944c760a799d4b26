"""fedimaging as process 1 of a container.

The kernel keeps from process 1 every signal that it has set no handler for: SIGTERM in the seconds before a command has set
its own would be lost, and the container killed a long time later.
"""

import signal
import sys


def end(number: int, _: object) -> None:
    """As a shell reports a process that a signal ended."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    from fedimaging.cli import main

    main()
