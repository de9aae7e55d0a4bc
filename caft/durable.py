"""Files that outlast a loss of power: what is renamed into place was written out before.
Under checkpoints and the storage of all stages."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk: a machine that loses its
    power keeps it. Network disks that know no such request are left to themselves."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
