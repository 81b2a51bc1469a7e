"""Processes: forks, what is pickled between them, and how a program ends."""

import asyncio
import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys

import mdm
import numpy as np
import pytest

ROWS = np.arange(40, dtype="f4").reshape(10, 4)


def same(result, rows=ROWS):
    return np.array_equal(result["y"], rows)


def test_a_forked_child_opens_its_own_sessions(client):
    assert same(client.infer(ROWS, "echo_FP32"))
    ticket = client.submit(ROWS, "echo_FP32")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert same(client.infer(ROWS + 1, "echo_FP32"), ROWS + 1)
            assert same(client.submit(ROWS + 2, "echo_FP32").result(), ROWS + 2)
            assert asyncio.run(client.infer_async(ROWS, "echo_FP32")).rows == 10
            try:
                ticket.result(5)
            except mdm.Unavailable as e:
                assert "process" in str(e)
            else:
                assert ticket.done()
            client.close()
            del ticket
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert same(ticket.result()) and same(client.infer(ROWS, "echo_FP32"))


def _its_values(result):
    return {name: result[name] for name in result}


def test_results_and_parts_are_pickled_and_copied(client, needs_plugin):
    long = np.random.default_rng(2).standard_normal((40_000, 4)).astype("f4")
    results = [
        client.infer(ROWS, "echo_FP32"), client.infer(ROWS, "echo_FP32"), client.infer(long, "echo_FP32"),
        client.infer(["a", "ü"], "texts"), client.infer([{"a": 1}, None], params={"model_proxy_path": "echo.proxy"}),
        client.infer(mdm.BF16(np.ones((2, 4), "u2")), "echo_BF16"), *client.stream(long, "echo_FP32"),
    ]
    unread = client.infer(ROWS, "echo_FP32")
    for again in (lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy):
        assert again(unread)["y"].tobytes() == ROWS.tobytes()
        for result in results:
            got = again(result)
            assert type(got) is type(result) and got.rows == result.rows and got.dtypes() == result.dtypes()
            assert got.stats == result.stats and got.failed == result.failed
            assert not isinstance(got, mdm.Part) or got.offset == result.offset
            for name, value in _its_values(result).items():
                assert np.array_equal(got[name], value)
                assert isinstance(value, list) or got[name].dtype == value.dtype
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.map(_its_values, results[:1])[0]["y"], ROWS)


def test_a_result_equals_itself_only(client):
    one, other = client.infer(ROWS, "echo_FP32"), client.infer(ROWS, "echo_FP32")
    assert one == one and one != other and one != {"y": ROWS} and len({one, other, one}) == 2


_ENDS_AS_IT_SENDS = """if 1:
    import sys, mdm, numpy as np
    client = mdm.Client(sys.argv[1], timeout=30)
    rows = np.ones((100_000, 256), "f4")
    kept = [client.submit(rows, "slow") for _ in range(3)] + [client.stream(rows, "slow") for _ in range(3)]
    del rows
"""


def test_a_program_that_ends_while_large_requests_leave_ends_well(server):
    """It aborted: their memory was freed as libzmq's thread still read it."""
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-c", _ENDS_AS_IT_SENDS, server.address],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, timeout=30, capture_output=True, text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


_FORKED = """if 1:
    import gc, os, sys, time, mdm, numpy as np
    client = mdm.Client(sys.argv[1], timeout=30)
    long = np.ones((100_000, 256), "f4")
    ticket, other, dropped = (client.submit(long, "slow") for _ in range(3))
    stream, closed, left, kept = (client.stream(long, "slow") for _ in range(4))
    # As where another thread of the parent's sends or reads at the time of the fork.
    for session in (ticket._shared.session, stream._session, closed._session):
        session.send_lock.acquire()
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        for session in (ticket._shared.session, stream._session, closed._session):
            session.send_lock.release()
        ticket.cancel(), stream.close()
        os._exit(0)
    def refused(call):
        try:
            call()
        except mdm.Unavailable as e:
            assert "process" in str(e), e
        else:
            assert False
    refused(ticket.cancel)
    refused(other.cancel)
    assert ticket.done()
    refused(ticket.result)
    refused(lambda: other.result(5))
    refused(lambda: list(stream))
    assert list(stream) == []
    closed.close()
    del dropped, left
    gc.collect()
    # It ends as every program does, with a ticket and a stream of its parent's.
"""


def test_a_forked_child_leaves_its_parents_tickets_and_streams(server):
    done = subprocess.run(
        [sys.executable, "-c", _FORKED, server.address], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=30, capture_output=True, text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tickets_and_streams_say_why_they_are_not_pickled(client):
    for of_this_process in (client.submit(ROWS, "echo_FP32"), client.stream(ROWS, "echo_FP32")):
        with pytest.raises(TypeError, match="belongs to the process"):
            pickle.dumps(of_this_process)


def _in_a_worker(argument):
    client, rows = argument
    return client.infer(rows, "echo_FP32")["y"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pickled_client_is_its_address(client, method):
    client.infer(ROWS, "echo_FP32")
    assert repr(pickle.loads(pickle.dumps(client))) == repr(client)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for n, got in enumerate(pool.map(_in_a_worker, [(client, ROWS + n) for n in range(4)])):
            assert np.array_equal(got, ROWS + n)
