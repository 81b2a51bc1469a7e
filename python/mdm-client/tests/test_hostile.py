"""Servers of another kind, and answers of wrong shapes: each is an exception that says so, in time, and nothing is left."""

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
import time

import mdm
import msgpack
import numpy as np
import pytest
from hostile import Hostile

ROW = np.zeros((2, 2), "f4")


def result(outputs, frames, parts=(2,), **more):
    """An answer of type result for the infer with id 1, which is the third message of a session."""
    header = {"v": 1, "type": "result", "outputs": outputs, "stats": {"queue_us": 1, "compute_us": 2, "chunks": 1}, **more}
    if parts is not None:
        header["parts"] = list(parts)
    return header, frames


def output(name="y", dtype="FP32", shape=(2, 2), **more):
    return {"name": name, "dtype": dtype, "shape": list(shape), **more}


def offsets(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


GOOD = bytes(16)
WRONG = {
    "short frame": result([output()], [b"123"]),
    "long frame": result([output()], [bytes(17)]),
    "no frame": result([output()], []),
    "a frame too many": result([output()], [GOOD, GOOD]),
    "missing part": result([output()], [bytes(8)], (1, 1)),
    "parts that sum to less": result([output()], [bytes(8)], (1,)),
    "parts that sum to more": result([output()], [GOOD, GOOD], (2, 2)),
    "negative part": result([output()], [GOOD, b""], (3, -1)),
    "part that is text": result([output()], [GOOD], ("2",)),
    "part that is true": result([output(shape=(1, 2))], [bytes(8)], (True,)),
    "no parts at all": result([output(shape=(0, 2))], [], ()),
    "parts are a map": ({"v": 1, "type": "result", "outputs": [output()], "parts": {"a": 2}}, [GOOD]),
    "huge dimension": result([output(shape=(2, 2**63))], [GOOD]),
    "overflowing shape": result([output(shape=(2, 2**33, 2**33))], [GOOD]),
    "shape that wraps to the length": result([output(shape=(2, 2**63, 2, 2))], [GOOD]),
    "negative dimension": result([output(shape=(2, -2))], [GOOD]),
    "dimension that is a float": result([output(shape=(2, 2.0))], [GOOD]),
    "dimension that is true": result([output(shape=(2, True, 2))], [GOOD]),
    "65 dimensions": result([output(shape=(2, 2) + (1,) * 63)], [GOOD]),
    "no dimension with parts": result([output(shape=())], [bytes(4)]),
    "unknown datatype": result([output(dtype="FP128")], [GOOD]),
    "datatype that is a number": result([output(dtype=7)], [GOOD]),
    "datatype that is a list": result([output(dtype=["FP32"])], [GOOD]),
    "no name": result([{"dtype": "FP32", "shape": [2, 2]}], [GOOD]),
    "name that is a number": result([output(name=5)], [GOOD]),
    "name twice": result([output(), output()], [GOOD, GOOD]),
    "shape that is text": result([{"name": "y", "dtype": "FP32", "shape": "22"}], [GOOD]),
    "no shape": result([{"name": "y", "dtype": "FP32"}], [GOOD]),
    "output that is a number": result([3], [GOOD]),
    "outputs that are a map": result({"y": 1}, [GOOD]),
    "no outputs": result([], []),
    "BOOL of 2": result([output(dtype="BOOL")], [b"\0\1\2\1"]),
    "text without values": result([output(dtype="BYTES", shape=(2,))], [offsets(0, 1, 2)]),
    "too few offsets": result([output(dtype="BYTES", shape=(2,))], [offsets(0, 2), b"ab"]),
    "offsets that do not begin at 0": result([output(dtype="BYTES", shape=(2,))], [offsets(1, 1, 2), b"ab"]),
    "offsets that end too early": result([output(dtype="BYTES", shape=(2,))], [offsets(0, 1, 1), b"ab"]),
    "offsets that end too late": result([output(dtype="JSON", shape=(2,))], [offsets(0, 1, 2**63), b"ab"]),
    "offsets that descend": result([output(dtype="BYTES", shape=(3,))], [offsets(0, 2, 1, 2), b"ab"], (3,)),
    "stats that are a list": result([output()], [GOOD], stats=[1]),
    "stats of text": result([output()], [GOOD], stats={"queue_us": "1", "compute_us": 2, "chunks": 1}),
    "failed that is a number": result([output()], [GOOD], failed=3),
    "failed without numbers": result([output()], [GOOD], failed=[{"first": -1, "count": 2}]),
    "welcome": ({"v": 1, "type": "welcome"}, []),
    "no known type": ({"v": 1, "type": "x" * 1000}, []),
    "end without a stream": ({"v": 1, "type": "end", "rows": 2}, []),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_result_of_a_wrong_shape_is_an_error_that_says_so(case):
    header, frames = WRONG[case]
    with Hostile(lambda asked, _: [[{**header, "id": asked["id"]}, *frames]]) as server, mdm.Client(server.address, timeout=5) as client:
        started = time.monotonic()
        for call in (
            lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m").result(), lambda: asyncio.run(client.infer_async(ROW, "m")),
        ):
            with pytest.raises(mdm.Internal) as caught:
                call()
            assert len(str(caught.value)) < 400
        if "type" in header and header["type"] == "result":
            with pytest.raises(mdm.Internal):
                list(client.stream(ROW, "m"))
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "first",
    [
        b"", b"\xc1", b"\x93\1\2\3", b"hello", b"\x81\x01\x02", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000, msgpack.packb({"v": 1}), msgpack.packb({"v": 1, "id": "1", "type": "result"}),
        msgpack.packb({"v": 1, "id": -1, "type": "result"}), msgpack.packb({"v": 1, "id": True, "type": "result"}), msgpack.packb({"v": 1, "id": 1, "type": 7}),
        msgpack.packb({"v": 2, "id": 1, "type": "result"}), msgpack.packb({"id": 1, "type": "result"}), b"\x81\xa1v\x01\x00", b"\x81\xa2\xff\xfe\x01",
    ],
    ids=range(16),
)
def test_a_header_that_cannot_be_read_ends_the_session(first):
    with Hostile(lambda *_: [[first, b"x"]]) as server, mdm.Client(server.address, timeout=5) as client:
        for call in (lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m").result(), lambda: list(client.stream(ROW, "m"))):
            started = time.monotonic()
            with pytest.raises((mdm.Internal, mdm.FailedPrecondition)):
                call()
            assert time.monotonic() - started < 3


def test_rows_that_are_no_documents_are_told_when_they_are_asked_for():
    for broken in (b"\xc1", b"\x01\x02", b"", b"\xa5ab", b"\x91" * 5000):
        header, frames = result([output(dtype="JSON", shape=(1,))], [offsets(0, len(broken)), broken], (1,))
        with Hostile(lambda asked, _: [[{**header, "id": asked["id"]}, *frames]]) as server, mdm.Client(server.address, timeout=5) as client:
            got = client.infer(ROW, "m")
            with pytest.raises(mdm.Internal, match="no msgpack document"):
                got["y"]


def test_parts_that_do_not_fit_together():
    def part(offset, **more):
        return [{"v": 1, "type": "part", "outputs": [output(shape=(1, 2), **more)], "offset": offset}, bytes(8)]

    def nothing(first, count):
        return [{"v": 1, "type": "part", "outputs": [], "offset": first, "failed": [{"first": first, "count": count}]}]

    end = [{"v": 1, "type": "end", "rows": 2, "stats": None}]
    for parts in (
        [part(0), part(5), end], [part(0), part(0), end], [part(0), part(1, name="z"), end], [part(-1), end], [part("0"), end],
        [part(0), nothing(2, 1), end], [part(0), nothing(1, -1), end], [part(0), nothing(1, 2**62), end], [part(0), [{**nothing(1, 1)[0], "failed": []}], end],
        [part(0), [{"v": 1, "type": "end", "rows": -2}]], [[{"v": 1, "type": "part", "outputs": [output(shape=())], "offset": 0}, b"123"]],
    ):
        def answer(asked, _, parts=parts):
            return [[{**p[0], "id": asked["id"]}, *p[1:]] for p in parts]

        with Hostile(answer) as server, mdm.Client(server.address, timeout=5) as client:
            with pytest.raises(mdm.Internal):
                client.infer(ROW, "m", progress=True)


def test_rows_to_blame_and_failed_rows_are_read_where_they_come():
    asked_for = []

    def answer(asked, _):
        asked_for.append(asked.get("on_bad_row"))
        if asked["model"] == "e":
            return [[{"v": 1, "type": "error", "id": asked["id"], "code": "INVALID_ARGUMENT", "message": "bad", "rows": [3, 2]}]]
        failed = [{"first": 1, "count": 1, "code": "INTERNAL", "message": "bad row"}]
        return [[{"v": 1, "type": "result", "id": asked["id"], "outputs": [output(shape=(2, 2))], "parts": [2], "failed": failed}, GOOD]]

    with Hostile(answer) as server, mdm.Client(server.address) as client:
        got = client.infer(ROW, "m", on_bad_row="report")
        assert got.failed == [mdm.Failed(range(1, 2), "INTERNAL", "bad row")] and asked_for == ["report"]
        with pytest.raises(mdm.InvalidArgument) as caught:
            client.infer(ROW, "e")
        assert caught.value.rows == range(3, 5)


def test_errors_with_odd_contents():
    for more, kind, text in (
        ({"code": "BRAND_NEW", "message": "m"}, mdm.Internal, "BRAND_NEW: m"), ({}, mdm.Internal, "gave no message"),
        ({"code": 7, "message": [1]}, mdm.Internal, "gave no message"), ({"code": "NOT_FOUND", "message": "m", "rows": "x"}, mdm.NotFound, "m"),
    ):
        for port in (False, True):
            def answer(asked, _, more=more, port=port):
                message = [{"v": 1, "type": "error", "id": asked["id"], **more}]
                return [("port", message)] if port else [message]

            with Hostile(answer) as server, mdm.Client(server.address, timeout=5) as client:
                with pytest.raises(kind, match=text):
                    client.infer(ROW, "m")


def test_a_server_that_is_silent_in_each_phase():
    quiet = lambda ok: None
    for manners, why in (({"hello": quiet}, "does not answer hello"), ({"welcome": quiet}, "port_out.*does not answer hello")):
        with Hostile(**manners) as server, mdm.Client(server.address, connect_timeout=0.3) as client:
            for call in (lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m"), lambda: asyncio.run(client.infer_async(ROW, "m"))):
                started = time.monotonic()
                with pytest.raises(mdm.Unavailable, match=why):
                    call()
                assert 0.2 < time.monotonic() - started < 1.5
    with Hostile(lambda *_: []) as server, mdm.Client(server.address, timeout=0.2, connect_timeout=0.3) as client:
        for call in (
            lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m").result(), lambda: asyncio.run(client.infer_async(ROW, "m")),
            lambda: list(client.stream(ROW, "m")), client.status, lambda: client.load("m"), lambda: client.terminate(),
        ):
            started = time.monotonic()
            with pytest.raises(mdm.DeadlineExceeded):
                call()
            assert time.monotonic() - started < 1.5
        time.sleep(0.1)
        assert sum(header["type"] == "cancel" for header in server.said) == 4


@pytest.mark.parametrize("silent_at", ["accept", "hello", "welcome"])
def test_a_calls_time_bounds_the_opening_of_its_session_too(silent_at):
    """It took the connect timeout, here 20 s."""
    quiet = lambda ok: None
    with contextlib.ExitStack() as stack:
        if silent_at == "accept":
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            address = f"127.0.0.1:{port}"
        else:
            address = stack.enter_context(Hostile(**{silent_at: quiet})).address
        client = stack.enter_context(mdm.Client(address, connect_timeout=20))
        timed = stack.enter_context(mdm.Client(address, timeout=0.3, connect_timeout=20))

        async def two():
            first = asyncio.ensure_future(client.infer_async(ROW, "m", timeout=10))
            await asyncio.sleep(0)
            try:
                return await client.infer_async(ROW, "m", timeout=0.3)
            finally:
                first.cancel()

        calls = [
            lambda: client.infer(ROW, "m", timeout=0.3), lambda: client.infer(ROW, "m", timeout=0.3, progress=True),
            lambda: client.submit(ROW, "m", timeout=0.3), lambda: client.stream(ROW, "m", timeout=0.3),
            lambda: asyncio.run(client.infer_async(ROW, "m", timeout=0.3)), lambda: asyncio.run(two()),
        ]
        if silent_at != "welcome":
            calls += [lambda: client.terminate(timeout=0.3), lambda: timed.load("m"), lambda: timed.unload("m"), lambda: timed.describe("m")]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(mdm.Unavailable):
                call()
            assert 0.2 < time.monotonic() - started < 1.5
        # One that waits for another's opening waits no longer than its own time.
        def wait_long():
            with contextlib.suppress(mdm.Unavailable):
                client.submit(ROW, "m", timeout=2.5)

        slow = threading.Thread(target=wait_long)
        slow.start()
        time.sleep(0.2)
        started = time.monotonic()
        with pytest.raises(mdm.Unavailable, match="still being opened"):
            client.submit(ROW, "m", timeout=0.3)
        assert time.monotonic() - started < 1.5
        slow.join(10)
        assert not slow.is_alive()


def test_what_opening_took_is_no_longer_there_for_the_answer():
    def late(ok):
        time.sleep(1.0)
        return ok

    with Hostile(lambda *_: [], hello=late) as server, mdm.Client(server.address, connect_timeout=20) as client:
        started = time.monotonic()
        with pytest.raises(mdm.DeadlineExceeded):
            client.infer(ROW, "m", timeout=2)
        assert time.monotonic() - started < 3.2


@pytest.mark.parametrize(
    "hello",
    [
        lambda ok: {**ok, "v": 9}, lambda ok: b"HTTP/1.1 400", lambda ok: {**ok, "port_out": 0}, lambda ok: {**ok, "port_out": "x"},
        lambda ok: {**ok, "max_request_bytes": -1}, lambda ok: {"v": 1, "type": "error", "id": ok["id"], "code": "INTERNAL", "message": "no"},
        lambda ok: {"v": 1, "type": "welcome", "id": ok["id"]}, lambda ok: {**ok, "port_out": 10**9},
    ],
    ids=range(8),
)
def test_another_version_or_kind_of_server_is_told_at_once(hello):
    with Hostile(hello=hello) as server, mdm.Client(server.address) as client:
        started = time.monotonic()
        with pytest.raises((mdm.FailedPrecondition, mdm.Internal)):
            client.infer(ROW, "m")
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03", None], ids=["closes", "http", "half", "silent"])
def test_what_is_no_zeromq_peer(greeting):
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        while True:
            try:
                peer = listener.accept()[0]
            except OSError:
                return
            kept.append(peer)
            if greeting is not None:
                peer.sendall(greeting)
                if greeting == b"":
                    peer.close()

    threading.Thread(target=serve, daemon=True).start()
    with mdm.Client(f"127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.4) as client:
        started = time.monotonic()
        with pytest.raises(mdm.Unavailable, match="not an MDM server"):
            client.infer(ROW, "m")
        assert time.monotonic() - started < 1.5
    listener.close()


def test_no_server_and_unknown_hosts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    for address in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "ipc:///tmp/nobody-is-there.in"):
        with mdm.Client(address, connect_timeout=1) as client:
            with pytest.raises(ConnectionError, match="UNAVAILABLE"):
                client.infer(ROW, "m")
            with pytest.raises(mdm.Unavailable):
                asyncio.run(client.infer_async(ROW, "m"))
    with mdm.Client("no-such-host.invalid:5555", connect_timeout=1) as client:
        with pytest.raises(mdm.Unavailable, match="no-such-host"):
            client.infer(ROW, "m")
    assert time.monotonic() - started < 8


def open_descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_is_left_of_clients_that_failed():
    def fail():
        with Hostile(lambda asked, _: [[b"\xc1"]]) as server:
            client = mdm.Client(server.address, timeout=2)
            for call in (lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m").result(), lambda: asyncio.run(client.infer_async(ROW, "m"))):
                with pytest.raises(mdm.Error):
                    call()
        with mdm.Client("127.0.0.1:1", connect_timeout=0.2) as nobody:
            with pytest.raises(mdm.Unavailable):
                nobody.infer(ROW, "m")

    fail()
    before = open_descriptors()
    for _ in range(5):
        fail()
    end = time.monotonic() + 5
    while open_descriptors() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert open_descriptors() <= before
