"""Bars of progress, by rich or tqdm, whichever is installed; nothing where neither is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Optional, TypeVar

T = TypeVar("T")


@contextmanager
def bar(total: Optional[int], unit: str) -> Iterator[Callable[[int], None]]:
    """Shows a bar, and gives the function that advances it."""
    try:
        from rich.console import Console
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        pass
    else:
        # A program's own output goes to stdout, often into a file.
        console = Console(stderr=True)
        shown = Progress(BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn(), console=console)
        is_shown = True
        try:
            shown.start()
        except LiveError:
            # Before its version 14.1 it shows one thing at a time, as a bar of the program's own or another of these.
            is_shown = False
        if not is_shown:
            yield lambda n: None
            return
        try:
            task = shown.add_task(unit, total=total)
            yield lambda n: shown.advance(task, n)
        finally:
            shown.stop()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda n: None
        return
    with tqdm(total=total, unit=f" {unit}") as counter:
        yield lambda n: counter.update(n) and None


def counted(items: "Iterator[T]", total: int, unit: str) -> "Iterator[T]":
    """The same items, with a bar that advances by one for each."""
    with bar(total, unit) as advance:
        for item in items:
            advance(1)
            yield item
