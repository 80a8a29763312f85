"""Files that several processes may write at the same time, and be killed while they do."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Put the file in place by renaming it, on network disks too: others see the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # As other files; only their owner could read them otherwise.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """What the process takes away from the rights of new files; it is told only as it is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
