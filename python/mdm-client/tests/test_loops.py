"""Coroutines' calls, and threads beside their loop."""

import asyncio
import threading
import time

import mdm
import numpy as np
import pytest
from mdm import aio

ROWS = np.ones((4, 4), "f4")
BIG = np.ones((60_000, 256), "f4")


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
def test_close_of_another_thread_ends_the_calls_of_a_loop_at_once(server, monkeypatch, debug):
    monkeypatch.setattr(aio, "_CHECK_EVERY", 30.0)
    raised = []

    async def calls():
        client = mdm.Client(server.address, timeout=50)
        await client.infer_async(ROWS, "echo_FP32")

        def close():
            try:
                client.close()
            except BaseException as e:
                raised.append(e)

        tasks = [asyncio.ensure_future(client.infer_async(BIG, "slow")) for _ in range(2)]
        await asyncio.sleep(0.2)
        session = client._loops._sessions[0].session
        thread = threading.Thread(target=close)
        thread.start()
        started = time.monotonic()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        took = time.monotonic() - started
        thread.join(10)
        return ended, took, session._connections

    ended, took, connections = asyncio.run(calls(), debug=debug)
    assert raised == [] and [type(e) for e in ended] == [mdm.Unavailable] * 2
    assert took < 10 and connections == []


def test_a_waiter_that_cannot_be_woken_keeps_no_other_from_its_error(server):
    with mdm.Client(server.address, timeout=30) as client:
        tickets = [client.submit(BIG, "slow") for _ in range(3)]
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        future.add_done_callback(print)
        loop.close()
        tickets[0]._wake = lambda: future.set_result(None)
        client.close()
        for ticket in tickets:
            with pytest.raises(mdm.Unavailable):
                ticket.result()


def test_a_client_closes_at_the_end_of_an_async_with(server):
    async def call():
        async with mdm.Client(server.address) as client:
            return client, (await client.infer_async(ROWS, "echo_FP32")).rows

    client, rows = asyncio.run(call())
    assert rows == 4
    with pytest.raises(mdm.Unavailable, match="closed"):
        client.infer(ROWS, "echo_FP32")


def test_a_wrong_port_out_is_blamed_as_such():
    for wrong in ("x", "host:y", 70_000):
        with pytest.raises(mdm.InvalidArgument, match="^INVALID_ARGUMENT: port_out '.*expected tcp://"):
            mdm.Client("localhost:5555", port_out=wrong)
