"""Rows that fail: which they are is told, and all others are answered where that is asked for."""

import asyncio

import mdm
import numpy as np
import pytest
from models import all_models
from servers import Server


@pytest.fixture(autouse=True)
def with_plugin(needs_plugin):
    pass


def texts(count, bad):
    """So many texts; the model shout takes no empty ones."""
    return ["" if row in bad else f"text {row}" for row in range(count)]


def told(result):
    return [row for failed in result.failed for row in failed.rows]


def check(result, count, bad):
    assert told(result) == sorted(bad) and result.rows == count
    for row, shouted in enumerate(result["shouted"]):
        assert (shouted is None) if row in bad else (shouted["text"] == f"text {row}")


def test_an_error_says_which_row_is_to_blame(client):
    with pytest.raises(mdm.InvalidArgument, match="row 333: .*nothing to shout") as caught:
        client.infer(texts(500, {333}), "shout")
    assert caught.value.rows == range(333, 334)
    with pytest.raises(mdm.NotFound) as caught:
        client.infer(["a"], "nothing")
    assert caught.value.rows is None


@pytest.fixture(scope="module")
def small_chunks():
    """A client of a server whose chunks are small, so that some parts have no row that does not fail."""
    with Server(all_models(), "--max-batch-size", "16", "--max-chunk-ms", "0") as server:
        with mdm.Client(server.address, timeout=30) as client:
            yield client


@pytest.mark.parametrize("bad", [set(), {0}, {3, 333}, set(range(100, 400))], ids=len)
def test_bad_rows_are_told_and_all_others_are_answered(small_chunks, bad):
    client, count = small_chunks, 500
    data = texts(count, bad)
    whole = client.infer(data, "shout", on_bad_row="report")
    check(whole, count, bad)
    check(client.submit(data, "shout", on_bad_row="report").result(), count, bad)
    check(client.infer(data, "shout", on_bad_row="report", progress=True), count, bad)
    check(asyncio.run(client.infer_async(data, "shout", on_bad_row="report")), count, bad)
    parts = sorted(client.stream(data, "shout", on_bad_row="report"), key=lambda part: part.offset)
    assert [row for part in parts for row in told(part)] == sorted(bad)
    assert sum(part.rows for part in parts) == count
    if len(bad) > 100:
        assert not all(part.keys() for part in parts)
    for failed in whole.failed:
        assert failed.code == "INVALID_ARGUMENT" and failed.message.endswith("there is nothing to shout")


def test_rows_that_no_model_blames_are_found_and_are_zeros(client):
    data = np.ones(300, "f4")
    data[[7, 250]] = -1
    for what in ("fail below 0", "panic below 0"):
        result = client.infer(data, "faulty", {"do": what}, on_bad_row="report")
        assert told(result) == [7, 250]
        assert np.flatnonzero(result["runs"] == 0).tolist() == [7, 250]


def test_where_every_row_fails_the_call_does(client):
    data = texts(200, set(range(200)))
    with pytest.raises(mdm.InvalidArgument, match="all 200 rows failed") as caught:
        client.infer(data, "shout", on_bad_row="report")
    assert caught.value.rows == range(200)
    with pytest.raises(mdm.InvalidArgument, match="all 200 rows failed"):
        list(client.stream(data, "shout", on_bad_row="report"))
    with pytest.raises(mdm.InvalidArgument, match="on_bad_row"):
        client.infer({"a": np.ones((3, 2), "f4"), "c": np.arange(5)}, "whole", on_bad_row="report")
