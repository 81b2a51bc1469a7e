"""Many at once: threads, coroutines, streams, tickets, Ctrl-C, lost sessions, memory."""

import asyncio
import contextlib
import gc
import glob
import os
import signal
import subprocess
import sys
import threading
import time

import mdm
import numpy as np
import pytest
from mdm import values
from mdm.session import INFER
from models import all_models
from servers import Server

ROWS = np.arange(40, dtype="f4").reshape(10, 4)
LONG = np.ones((100_000, 256), "f4")


def same(result, rows=ROWS):
    return np.array_equal(result["y"], rows)


def busy(client):
    """Whether the server has something under way."""
    return client.status()["queue"]["requests"] > 0


def becomes(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_threads_share_a_client(client):
    problems = []

    def work(number):
        try:
            rows = ROWS + number
            for turn in range(40):
                if turn % 3 == 0:
                    assert same(client.infer(rows, "echo_FP32"), rows)
                elif turn % 3 == 1:
                    tickets = [client.submit(rows + n, "echo_FP32") for n in range(5)]
                    for n, got in enumerate(client.fetch_all(tickets)):
                        assert same(got, rows + n)
                else:
                    assert sum(part.rows for part in client.stream(rows, "echo_FP32")) == 10
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_ticket_is_fetched_by_any_thread_and_in_any_order(client):
    tickets = [client.submit(ROWS + n, "echo_FP32") for n in range(200)]
    got = {}

    def fetch(numbers):
        for n in numbers:
            got[n] = tickets[n].result(20)

    threads = [threading.Thread(target=fetch, args=(list(reversed(range(k, 200, 4))),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(got[n], ROWS + n) for n in range(200))
    assert tickets[0].done() and tickets[0].result() is got[0]


def test_the_caller_may_write_to_what_was_submitted(client):
    rows = np.zeros((20_000, 4), "f4")
    tickets = []
    for n in range(10):
        rows[:] = n
        tickets.append(client.submit(rows, "echo_FP32"))
    rows[:] = 99
    for n, got in enumerate(client.fetch_all(tickets)):
        assert (got["y"] == n).all()


def test_coroutines_wait_on_their_loop(client):
    async def many():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        slow = client.infer_async(LONG[:20_000], "slow")
        results = await asyncio.gather(slow, *(client.infer_async(ROWS + n, "echo_FP32") for n in range(300)))
        ticker.cancel()
        assert all(same(got, ROWS + n) for n, got in enumerate(results[1:]))
        assert ticks > 5
        with pytest.raises(mdm.NotFound):
            await client.infer_async(ROWS, "nothing")

    threads_before = threading.active_count()
    for _ in range(3):
        asyncio.run(many())
    assert threading.active_count() <= threads_before + 1  # pyzmq's own, that frees what was sent without a copy


def test_a_cancelled_coroutine_takes_its_request_back(client):
    async def cancelled():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.infer_async(LONG, "slow"), 0.3)
        task = asyncio.create_task(client.infer_async(LONG, "slow"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await client.infer_async(ROWS, "echo_FP32")

    assert same(asyncio.run(cancelled()))
    becomes(lambda: not busy(client))


def test_a_coroutine_whose_server_dies_fails_at_once():
    async def dies(client, server):
        assert same(await client.infer_async(ROWS, "echo_FP32"))
        waiting = [asyncio.create_task(client.infer_async(LONG[:50_000], "slow")) for _ in range(3)]
        await asyncio.sleep(0.5)
        server.kill()
        started = time.monotonic()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, mdm.Unavailable)
        assert time.monotonic() - started < 2

    with Server(all_models()) as server, mdm.Client(server.address) as client:
        asyncio.run(dies(client, server))


def test_parts_of_a_stream(client):
    rows = np.random.default_rng(3).standard_normal((5000, 4)).astype("f4")
    stream = client.stream(rows, "echo_FP32")
    got = np.zeros_like(rows)
    for part in stream:
        got[part.offset : part.offset + part.rows] = part["y"]
    assert np.array_equal(got, rows) and stream.rows == 5000 and stream.stats.chunks > 1
    assert list(stream) == []


def test_a_stream_that_is_left_early_is_taken_back(client):
    for leave in (lambda s: s.close(), lambda s: s.__exit__(None, None, None), lambda s: None):
        stream = client.stream(LONG, "slow")
        next(stream)
        leave(stream)
        del stream
        gc.collect()
        becomes(lambda: not busy(client))
    assert same(client.infer(ROWS, "echo_FP32"))


def test_a_stream_that_is_refused_gives_its_session_back(client):
    client.infer(ROWS, "echo_FP32")
    (session,) = client._pool._idle[INFER]
    with pytest.raises(mdm.ResourceExhausted):
        client.stream(np.broadcast_to(LONG[:1], (600_000, 256)), "echo_FP32")
    assert client._pool._idle[INFER] == [session]
    assert sum(part.rows for part in client.stream(ROWS, "echo_FP32")) == 10
    assert client._pool._idle[INFER] == [session]


def test_cancel(client):
    ticket = client.submit(LONG, "slow")
    with pytest.raises(mdm.DeadlineExceeded, match="goes on"):
        ticket.result(0.05)
    assert not ticket.done()
    ticket.cancel()
    with pytest.raises(mdm.Cancelled):
        ticket.result(10)
    with pytest.raises(mdm.Cancelled):
        ticket.result()
    dropped = client.submit(LONG, "slow")
    becomes(lambda: busy(client))
    del dropped
    gc.collect()
    becomes(lambda: not busy(client))


CTRL_C = """if 1:
    import sys, threading, time, os, signal
    import numpy as np, mdm
    client = mdm.Client(sys.argv[1])
    rows = np.ones((40_000, 256), "f4")
    client.infer(rows[:1], "slow")
    def interrupt():
        while client.status()["queue"]["requests"] == 0:
            time.sleep(0.01)
        time.sleep(0.1)
        global at
        at = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
    def stream():
        for part in client.stream(rows, "slow"): pass
    def fetch_in_line():
        ticket = client.submit(rows, "slow")
        threading.Thread(target=lambda: wait(ticket), daemon=True).start()
        time.sleep(0.05)
        other = client.submit(rows, "slow")
        try: other.result()
        finally: ticket.cancel()
    def wait(ticket):
        try: ticket.result()
        except mdm.Error: pass
    for call in (lambda: client.infer(rows, "slow"), lambda: client.submit(rows, "slow").result(), stream, fetch_in_line):
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            call()
            print("not interrupted"); sys.exit(1)
        except KeyboardInterrupt:
            took = time.monotonic() - at
        end = time.monotonic() + 10
        while client.status()["queue"]["requests"]:
            assert time.monotonic() < end, "not cancelled"
            time.sleep(0.01)
        assert client.infer(rows[:3], "slow").rows == 3
        assert client.submit(rows[:3], "slow").result().rows == 3
        print(f"{took:.3f}")
"""


def test_ctrl_c_ends_a_wait_and_cancels(server):
    path = os.pathsep.join(p for p in sys.path if p)
    worst = []
    # What a busy machine does to a thread in a quarter of a second is not the client's: it has three tries.
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CTRL_C, server.address], env={**os.environ, "PYTHONPATH": path}, timeout=55, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        took = [float(word) for word in done.stdout.split()]
        assert len(took) == 4
        worst.append(max(took))
        if worst[-1] < 0.2:
            return
    pytest.fail(f"it took {worst} s")


def test_a_lost_session_fails_what_is_in_flight_and_the_next_call_opens_another():
    with Server(all_models()) as server:
        client = mdm.Client(server.address)
        client.infer(ROWS, "echo_FP32")
        tickets = [client.submit(LONG[:50_000], "slow") for _ in range(3)]
        errors, ends = [], []

        def call(run):
            try:
                run()
            except mdm.Error as e:
                errors.append(e)
            ends.append(time.monotonic())

        runs = [
            lambda: client.infer(LONG[:50_000], "slow"), lambda: list(client.stream(LONG[:50_000], "slow")), *(t.result for t in tickets),
        ]
        threads = [threading.Thread(target=call, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        becomes(lambda: client.status()["queue"]["requests"] == 5)
        server.kill()
        killed = time.monotonic()
        for thread in threads:
            thread.join()
        assert [type(e) for e in errors] == [mdm.Unavailable] * 5
        assert max(ends) - killed < 1
        with pytest.raises(mdm.Unavailable):
            client.infer(ROWS, "echo_FP32")
        with Server(all_models(), port=server.port):
            assert same(client.infer(ROWS, "echo_FP32"))
            assert same(client.submit(ROWS, "echo_FP32").result())
        client.close()


def test_a_server_that_went_while_the_client_was_idle():
    with Server(all_models()) as server:
        client = mdm.Client(server.address)
        assert same(client.infer(ROWS, "echo_FP32")) and same(client.submit(ROWS, "echo_FP32").result())
        client.status()
        assert client.terminate() is True
        server.process.wait(10)
        with Server(all_models(), port=server.port):
            time.sleep(0.1)
            assert same(client.infer(ROWS, "echo_FP32")) and same(client.submit(ROWS, "echo_FP32").result())
            assert client.status()["uptime_s"] < 30
        client.close()


def test_results_that_came_before_a_loss_are_not_lost():
    with Server(all_models()) as server:
        with mdm.Client(server.address) as client:
            tickets = [client.submit(ROWS + n, "echo_FP32") for n in range(50)]
            becomes(lambda: client.status()["totals"]["requests"] >= 50)
            time.sleep(0.3)
            server.kill()
            assert all(same(ticket.result(), ROWS + n) for n, ticket in enumerate(tickets))


def test_answers_that_are_seen_together_with_a_loss_reach_every_ticket(monkeypatch):
    with Server(all_models()) as server, mdm.Client(server.address) as client:
        tickets = [client.submit(ROWS + n, "echo_FP32") for n in range(8)]
        becomes(lambda: client.status()["totals"]["requests"] >= 8)
        time.sleep(0.3)
        server.kill()
        time.sleep(0.3)
        session = tickets[0]._shared.session
        receive, looks = session.receive, []

        def late(*args):
            """Finds nothing the first time, so that the wait sees the answers and the loss at once."""
            looks.append(args)
            return receive(*args) if len(looks) > 1 else None

        monkeypatch.setattr(session, "receive", late)
        assert all(same(ticket.result(), ROWS + n) for n, ticket in enumerate(tickets))


def test_a_drained_server_answers_what_it_has():
    with Server(all_models()) as server, mdm.Client(server.address) as client:
        ticket = client.submit(LONG[:5000], "slow")
        becomes(lambda: busy(client) or ticket.done())
        assert client.terminate(timeout=30) in (True, False)
        assert ticket.result().rows == 5000
        waiting = client.submit  # refused or not there
        with pytest.raises(mdm.Unavailable):
            waiting(ROWS, "echo_FP32").result()


def test_terminate_now_and_a_drain_that_takes_too_long():
    with Server(all_models()) as server, mdm.Client(server.address) as client:
        ticket = client.submit(LONG, "slow")
        becomes(lambda: busy(client))
        with pytest.raises(mdm.DeadlineExceeded, match="goes on stopping"):
            client.terminate(timeout=0.2)
        with pytest.raises(mdm.Unavailable):
            ticket.result(20)
            client.infer(ROWS, "echo_FP32")
    with Server(all_models()) as server, mdm.Client(server.address) as client:
        ticket = client.submit(LONG, "slow")
        becomes(lambda: busy(client))
        assert client.terminate(now=True, timeout=30) in (True, False)
        with pytest.raises(mdm.Unavailable):
            ticket.result(20)
        server.process.wait(20)


@contextlib.contextmanager
def stopped(server):
    # A thread goes on until the signal has reached it, which is after kill() has returned.
    def states():
        for task in glob.glob(f"/proc/{server.pid}/task/*/stat"):
            with open(task) as stat:
                yield stat.read().rpartition(")")[2].split()[0]

    os.kill(server.pid, signal.SIGSTOP)
    try:
        becomes(lambda: set(states()) <= {"T"})
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_server_that_stops_to_answer_is_noticed_by_its_silence():
    with Server(all_models()) as server, mdm.Client(server.address, heartbeat_timeout=1.0) as client:
        client.infer(ROWS, "echo_FP32")
        with stopped(server):
            started = time.monotonic()
            with pytest.raises(mdm.Unavailable):
                client.infer(ROWS, "echo_FP32")
            assert time.monotonic() - started < 4


def test_a_question_to_a_server_that_hangs_ends_in_the_clients_time():
    with Server(all_models()) as server, mdm.Client(server.address, timeout=0.5, connect_timeout=20) as client:
        client.status()
        with stopped(server):
            for ask in (client.status, client.models, client.hello):
                started = time.monotonic()
                with pytest.raises(mdm.Error) as caught:
                    ask()
                assert isinstance(caught.value, (mdm.DeadlineExceeded, mdm.Unavailable)) and time.monotonic() - started < 5


def sockets():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("way", ["close", "with", "collected"])
def test_clients_that_end_leave_no_socket(server, way):
    def use():
        client = mdm.Client(server.address)
        ticket = client.submit(ROWS, "echo_FP32")
        client.infer(ROWS, "echo_FP32")
        client.status()
        asyncio.run(client.infer_async(ROWS, "echo_FP32"))
        next(client.stream(ROWS, "echo_FP32"))
        if way == "close":
            ticket.result()
            client.close()
            with pytest.raises(mdm.Unavailable, match="closed"):
                client.infer(ROWS, "echo_FP32")
            client.close()
        elif way == "with":
            with client:
                pass
            try:
                ticket.result()
            except mdm.Unavailable:
                pass

    use()
    before = sockets()
    for _ in range(10):
        use()
    becomes(lambda: sockets() <= before)
    with mdm.Client(server.address) as client:
        sessions = lambda: client.status()
        assert sessions()["queue"]["requests"] == 0


def test_closing_ends_the_waits_of_other_threads(server):
    client = mdm.Client(server.address)
    ticket = client.submit(LONG, "slow")
    caught = []

    def wait():
        try:
            ticket.result()
        except mdm.Error as e:
            caught.append(e)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    client.close()
    thread.join(5)
    assert not thread.is_alive() and isinstance(caught[0], mdm.Unavailable) and "closed" in str(caught[0])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_does_not_grow(client):
    large = np.ones((4096, 256), "f4")  # 4 MiB
    names = {"infer": lambda: client.infer(large, "slow", timeout=50), "submit": lambda: client.submit(large, "slow").result()}
    small = ROWS

    def round_of_calls():
        for call in names.values():
            call()
        for _ in range(300):
            client.infer(small, "echo_FP32")
        for got in client.fetch_all([client.submit(small, "echo_FP32") for _ in range(300)]):
            assert got.rows == 10
        for _ in range(50):
            with pytest.raises(mdm.NotFound):
                client.infer(small, "nothing")
            client.submit(small, "nothing")

    for _ in range(3):
        round_of_calls()
    before = resident()
    for _ in range(6):
        round_of_calls()
    assert resident() - before < 24 << 20


def test_a_large_request_is_not_copied_and_a_large_result_is_a_view(client):
    rows = np.ones((8, 1 << 20), "f4")  # 32 MiB
    for data in (rows, rows[2:5], {"x": rows}):
        (column,) = values.columns(data, values.VIEWED)
        assert np.shares_memory(np.frombuffer(column.frames[0], "f4"), rows)
        (column,) = values.columns(data, values.COPIED)
        assert not np.shares_memory(np.frombuffer(column.frames[0], "f4"), rows)
    got = client.infer(rows, "echo_FP32")["y"]
    assert np.array_equal(got, rows) and not got.flags.owndata
    with pytest.raises(ValueError):
        got[0] = 1
    # What is kept of a result outlives the client.
    with mdm.Client(client.address) as other:
        kept = other.infer(rows, "echo_FP32")["y"]
    assert kept[7, -1] == 1
    several = client.infer(np.ones((1 << 16, 16), "f4"), "echo_FP32")["y"]
    assert several.sum() == 1 << 20


def test_an_idle_session_is_kept(client):
    """Longer than the silence that the server allows: libzmq answers its PINGs."""
    client.infer(ROWS, "echo_FP32")
    time.sleep(7)
    pool = client._pool
    session = pool._idle[INFER][-1]
    assert same(client.infer(ROWS, "echo_FP32")) and pool._idle[INFER][-1] is session
