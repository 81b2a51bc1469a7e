"""Threads that take turns in reading the session that tickets share."""

import signal
import threading
import time

import mdm
import numpy as np
import pytest
from mdm import tickets

ROWS = np.arange(40, dtype="f4").reshape(10, 4)


def test_a_thread_that_begins_to_wait_as_another_ends_reading_reads_at_once(client, monkeypatch):
    client.infer(ROWS, "echo_FP32")
    monkeypatch.setattr(tickets, "SLICE", 20.0)
    ticket = client.submit(ROWS, "echo_FP32")
    shared = ticket._shared
    reads, ends = threading.Event(), threading.Event()

    def read():
        with shared._read_lock:
            shared._reading = True
            reads.set()
            ends.wait(10)
            shared._reading = False

    class Late(set):
        """Who reads ends, and sees nobody to wake, just before one more begins to wait."""

        def add(self, waiting):
            ends.set()
            reader.join(10)
            super().add(waiting)

    shared._waiting = Late()
    reader = threading.Thread(target=read)
    reader.start()
    reads.wait(10)
    started = time.monotonic()
    assert np.array_equal(ticket.result()["y"], ROWS)
    assert time.monotonic() - started < 10


def test_an_answer_that_comes_as_its_thread_stops_waiting_is_kept(client):
    """The threads' time is over again and again just as answers are delivered by another of them."""
    submitted = [client.submit(ROWS + n, "echo_FP32") for n in range(400)]
    wrong = []

    def fetch(numbers):
        for n in numbers:
            while True:
                try:
                    got = submitted[n].result(0.0005)["y"]
                except TimeoutError:
                    continue
                except BaseException as e:
                    wrong.append(e)
                    return
                if not np.array_equal(got, ROWS + n):
                    wrong.append(n)
                break

    threads = [threading.Thread(target=fetch, args=(range(k, 400, 8),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert wrong == []


@pytest.fixture
def at_signal():
    """Sets what is done when the signal of the test comes."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda call: signal.signal(signal.SIGUSR1, lambda *_: call())
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_has_its_tickets_results_as_its_thread_waits_for_another(client, at_signal):
    client.submit(ROWS, "echo_FP32").result()
    main, got = threading.get_ident(), []
    slow = client.submit(np.ones((60_000, 256), "f4"), "slow", timeout=40)

    def handle():
        started = time.monotonic()
        ticket = client.submit(ROWS, "echo_FP32", timeout=20)
        got.append((ticket.result().rows, ticket.done(), slow.done(), time.monotonic() - started))

    at_signal(handle)
    for delay in (0.1, 0.2, 0.3):
        threading.Timer(delay, signal.pthread_kill, (main, signal.SIGUSR1)).start()
    assert slow.result().rows == 60_000
    assert [(rows, done, other) for rows, done, other, _ in got] == [(10, True, False)] * 3
    assert max(took for *_, took in got) < 5


def test_a_signal_handler_may_ask_for_the_ticket_that_its_thread_waits_for_and_close_the_client(server, at_signal):
    main, got = threading.get_ident(), []
    with mdm.Client(server.address, timeout=40) as client:
        client.submit(ROWS, "echo_FP32").result()
        slow = client.submit(np.ones((60_000, 256), "f4"), "slow")
        at_signal(lambda: got.append(slow.result().rows))
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        assert slow.result().rows == 60_000 and got == [60_000]
        slow = client.submit(np.ones((60_000, 256), "f4"), "slow")
        at_signal(client.close)
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        with pytest.raises(mdm.Unavailable):
            slow.result()


def test_a_signal_handler_in_the_middle_of_an_answer_is_told_so(client, monkeypatch):
    client.submit(ROWS, "echo_FP32").result()
    ticket = client.submit(ROWS, "echo_FP32")
    session = ticket._shared.session
    receive, told = session.receive, []

    def interrupted(*arguments):
        session._receiving = True
        for ask in (ticket.result, ticket.done):
            try:
                told.append(ask())
            except mdm.Error as e:
                told.append(e)
        session._receiving = False
        monkeypatch.undo()
        return receive(*arguments)

    monkeypatch.setattr(session, "receive", interrupted)
    assert np.array_equal(ticket.result()["y"], ROWS)
    assert isinstance(told[0], mdm.FailedPrecondition) and "in the middle of an answer" in str(told[0]) and told[1] is False


def test_a_signal_handler_in_the_middle_of_a_request_is_told_so(client, monkeypatch):
    shared = client.submit(ROWS, "echo_FP32")._shared
    send, told = shared.session.send, []

    def interrupted(*arguments):
        monkeypatch.undo()
        with pytest.raises(mdm.FailedPrecondition, match="in the middle of a request") as caught:
            client.submit(ROWS, "echo_FP32")
        told.append(caught)
        # Another thread waits for its turn, as ever.
        other = threading.Thread(target=lambda: told.append(client.submit(ROWS + 1, "echo_FP32").result()["y"]))
        other.start()
        threads.append(other)
        send(*arguments)

    threads = []
    monkeypatch.setattr(shared.session, "send", interrupted)
    assert np.array_equal(client.submit(ROWS, "echo_FP32").result()["y"], ROWS)
    threads[0].join(20)
    assert len(told) == 2 and np.array_equal(told[1], ROWS + 1)


def test_a_thread_that_submits_is_not_held_up_by_its_signals(client, at_signal):
    said = []

    def handle():
        try:
            said.append(client.submit(ROWS, "echo_FP32", timeout=10).result().rows)
        except mdm.FailedPrecondition:
            said.append(None)

    client.submit(ROWS, "echo_FP32").result()
    main, ended = threading.get_ident(), threading.Event()

    def send_signals():
        while not ended.wait(0.003):
            signal.pthread_kill(main, signal.SIGUSR1)

    at_signal(handle)
    sender = threading.Thread(target=send_signals)
    sender.start()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            tickets = [client.submit(ROWS + n, "echo_FP32", timeout=20) for n in range(20)]
            assert all(np.array_equal(ticket.result()["y"], ROWS + n) for n, ticket in enumerate(tickets))
    finally:
        ended.set()
        sender.join(10)
    assert said.count(10) > 10
