"""Threads that take turns in reading the session that tickets share."""

import threading
import time

import numpy as np
from mdm import tickets

ROWS = np.arange(40, dtype="f4").reshape(10, 4)


def test_a_thread_that_begins_to_wait_as_another_ends_reading_reads_at_once(client, monkeypatch):
    client.infer(ROWS, "echo_FP32")
    monkeypatch.setattr(tickets, "SLICE", 20.0)
    ticket = client.submit(ROWS, "echo_FP32")
    shared = ticket._shared

    class Late(set):
        """Who reads ends, and sees nobody to wake, just before one more begins to wait."""

        def add(self, waiting):
            shared._read_lock.release()
            super().add(waiting)

    shared._waiting = Late()
    shared._read_lock.acquire()
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
