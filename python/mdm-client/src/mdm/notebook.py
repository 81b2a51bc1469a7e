"""How results, a status and models show themselves in a notebook: as tables."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Sequence

if TYPE_CHECKING:
    from .results import Result

#: Rows of a result that its table shows.
_ROWS = 10
#: Characters of a value that a cell shows.
_CHARS = 80


class Status(Dict[str, Any]):
    """A server's status, as the protocol's page describes it."""

    def _repr_html_(self) -> str:
        head = f"MDM {self.get('version', '?')}, up for {self.get('uptime_s', '?')} s"
        queue, totals, latency = (self.get(key) or {} for key in ("queue", "totals", "latency_us"))
        facts = table(
            ("waiting requests", "waiting rows", "answered requests", "answered rows", "p50 µs", "p99 µs"),
            [
                (
                    queue.get("requests"),
                    queue.get("rows"),
                    totals.get("requests"),
                    totals.get("rows"),
                    latency.get("p50") or "-",
                    latency.get("p99") or "-",
                )
            ],
        )
        keys = ("id", "device", "state", "model", "chunks", "rows", "busy")
        workers = table(keys, ([worker.get(key) for key in keys] for worker in self.get("workers") or ()))
        return f"<b>{html.escape(head)}</b>{facts}{workers}"


class Model(Dict[str, Any]):
    """A model: its ``name``, ``version``, ``kind``, ``inputs`` and ``outputs``."""

    def _repr_html_(self) -> str:
        return Models([self])._repr_html_()


class Models(List[Model]):
    """Models that a server has loaded."""

    def _repr_html_(self) -> str:
        return table(
            ("name", "version", "kind", "inputs", "outputs"),
            (
                (m.get("name"), m.get("version"), m.get("kind"), _ports(m.get("inputs")), _ports(m.get("outputs")))
                for m in self
            ),
        )


def _ports(ports: Any) -> str:
    return ", ".join(f"{p.get('name')}: {p.get('dtype')} {p.get('shape')}" for p in ports or ())


def result(shown: "Result") -> str:
    """A result's first rows."""
    if shown.rows is None:
        rows: Sequence[Any] = [(name, shown[name]) for name in shown]
        return table(("output", "value"), rows)
    names = list(shown)
    first = range(min(shown.rows, _ROWS))
    body = table(("", *names), ([row, *(shown[name][row] for name in names)] for row in first))
    stats = shown.stats
    return f"{body}{shown.rows} rows in {stats.chunks} chunks, {stats.queue_us + stats.compute_us} µs"


def table(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table of what is text in HTML by nothing but its escapes."""
    head = "".join(f"<th>{_cell(value)}</th>" for value in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= _CHARS else text[:_CHARS] + "…")
