"""What a server says of itself, with every key there: on the wire those that say nothing are left out."""

from __future__ import annotations

from typing import Any, Dict

_LISTS = ("express_workers", "recent", "by_model", "broken")


def complete(status: Dict[str, Any]) -> Dict[str, Any]:
    """The same with what was left out, and None in latencies of which nothing was measured: on the wire they are 0."""
    whole: Dict[str, Any] = _measured({**dict.fromkeys(_LISTS, ()), **status})
    _fill(whole.get("totals"), failed_rows=0)
    for key, defaults in (
        ("by_model", {"failed_rows": 0}),
        ("workers", {"extra": False, "recent": []}),
        ("express_workers", {"extra": False, "recent": []}),
        ("broken", {"version": None, "served_on": None}),
    ):
        for entry in whole.get(key) or ():
            _fill(entry, **defaults)
    return whole


def _fill(entry: Any, **defaults: Any) -> None:
    if isinstance(entry, dict):
        for key, value in defaults.items():
            entry.setdefault(key, value)


def _measured(of: Any) -> Any:
    if isinstance(of, (list, tuple)):
        return [_measured(value) for value in of]
    if not isinstance(of, dict):
        return of
    latency = of.get("latency_us")
    read = {key: _measured(value) for key, value in of.items()}
    if isinstance(latency, dict) and not any(latency.values()):
        read["latency_us"] = dict.fromkeys(latency)
    return read
