"""Bars of progress, by rich or tqdm, whichever is installed; nothing where neither is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Optional, TypeVar

T = TypeVar("T")


@contextmanager
def bar(total: Optional[int], unit: str) -> Iterator[Callable[[int], None]]:
    """Shows a bar, and gives the function that advances it."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        pass
    else:
        with Progress(BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn()) as rich:
            task = rich.add_task(unit, total=total)
            yield lambda n: rich.advance(task, n)
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda n: None
        return
    with tqdm(total=total, unit=f" {unit}") as shown:
        yield lambda n: shown.update(n) and None


def counted(items: "Iterator[T]", total: int, unit: str) -> "Iterator[T]":
    """The same items, with a bar that advances by one for each."""
    with bar(total, unit) as advance:
        for item in items:
            advance(1)
            yield item
