"""Check an audit log, or a record of approvals, with the standard library alone: `python -m fedimaging.site.verify_log FILE`.

Says how many events there are and the hash of the last one. Compare both with what was noted the last time: the chain
shows every change and every gap, but not that lines were cut off at the end.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fedimaging.errors import LedgerError
from fedimaging.site.audit_log import verdict


def main(arguments: Sequence[str]) -> int:
    """Print the verdict; 0 where all is well, 1 where not."""
    if len(arguments) != 1:
        print("usage: python -m fedimaging.site.verify_log FILE")
        return 2
    try:
        print(verdict(Path(arguments[0])))
    except LedgerError as error:
        print(f"NOT IN ORDER: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
