"""What Prometheus' own library reads of a server's metrics, several times while it works: `metrics.py URL`.

The page is read as Prometheus' text, and again as OpenMetrics, whose reader is strict about types, units of time,
buckets, counters that fall, and series that come twice.
"""

import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_strictly
from prometheus_client.parser import text_string_to_metric_families as read

URL = sys.argv[1]


def as_openmetrics(page):
    """The same page in the younger format, where a counter's name is without its `_total`."""
    lines = []
    for line in page.splitlines():
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            line = f"# {kind} {name.removesuffix('_total')} {rest}"
        lines.append(line)
    return "\n".join(lines + ["# EOF", ""])


def check(page):
    """The values of a page by name and labels; an error if it is not as it should be."""
    families = list(read(page))
    strict = {family.name: family for family in read_strictly(as_openmetrics(page))}
    assert {family.name for family in families} == strict.keys()
    values = {}
    for family in families:
        assert family.type in ("counter", "gauge", "histogram"), family
        assert family.documentation and family.samples, family
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values, f"twice: {sample}"
            values[key] = sample.value
    return values


def refused(page, why):
    try:
        check(page)
    except (ValueError, AssertionError):
        return
    raise AssertionError(f"read, but it has {why}")


def main():
    before = {}
    for _ in range(5):
        with urllib.request.urlopen(URL, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), answer.headers
            page = answer.read().decode()
        values = check(page)
        for (name, labels), value in values.items():
            if name.endswith(("_total", "_bucket", "_count")):
                assert value >= before.get((name, labels), 0), f"{name} {labels} fell to {value}"
        before = values
    requests = [value for (name, _), value in before.items() if name == "mdm_requests_total"]
    assert sum(requests) > 0, requests
    print("ok", len(before), "series")

    series = next(line for line in page.splitlines() if line.startswith("mdm_rows_total"))
    buckets = [line for line in page.splitlines() if "_bucket{" in line and 'le="+Inf"' in line]
    refused(page + series + "\n", "a series twice")
    refused(page.replace("mdm_rows_total{", "mdm_rows_total{le{", 1), "a label that is none")
    refused(page.replace(buckets[0] + "\n", "", 1), "a histogram without its last bucket")
    refused(page.replace("# TYPE mdm_rows_total counter", "# TYPE mdm_rows_total gauges"), "a type that is none")
    refused(page + "mdm_rows_total{model=\"x\"} many\n", "a value that is no number")
    print("ok refused", flush=True)


main()
