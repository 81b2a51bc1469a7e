"""The bound that the system sets on a process's open files: whether it is reached, and the error that says so."""

from __future__ import annotations

import errno
import os
from typing import Optional

from .errors import ResourceExhausted

_CODES = (errno.EMFILE, errno.ENFILE)


def no_more_files(at: str) -> ResourceExhausted:
    """The error of what could not be opened there for want of files."""
    return ResourceExhausted(
        f"{at}: no more open files: a session takes 8, and each call at a time has one; raise the bound (ulimit -n), or use"
        " submit, whose requests share a session"
    )


def is_bound(code: Optional[int]) -> bool:
    """Whether an error's number says that the bound is reached."""
    return code in _CODES


def is_reached() -> bool:
    """Whether no file can be opened now, for errors that have no number of the system's."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as e:
        return is_bound(e.errno)
    return False
