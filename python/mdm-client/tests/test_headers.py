"""Answers whose header differs from an earlier one's in nothing but id and stats: they are read without unpacking it."""

import struct
import time

import mdm
import msgpack
import numpy as np
import pytest
from hostile import Hostile
from mdm import headers, values

ROW = np.zeros((2, 2), "f4")


def header(id, outputs, parts=(2,), stats=(1, 2, 1)):
    """A result's header with its keys in a server's order."""
    named = dict(zip(("queue_us", "compute_us", "chunks"), stats)) if isinstance(stats, tuple) else stats
    packed = {"v": 1, "type": "result", "id": id, "outputs": outputs, "parts": list(parts)}
    if isinstance(stats, bytes):
        return msgpack.packb({**packed, "stats": None})[:-1] + stats
    return msgpack.packb({**packed, "stats": named})


def output(name, shape=(2, 2), dtype="FP32"):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


@pytest.fixture(autouse=True)
def nothing_known():
    headers._known.clear()


def test_each_answer_has_its_own_numbers_and_stats():
    # A name that is also a key of the header, or that holds the bytes before one, is no place to cut it.
    for names in (["y"], ["stats"], ["stats", "y"], ["y", "parts", "a\u00a5stats"]):
        asked_for = []

        def answer(asked, _, names=names):
            asked_for.append(asked["id"])
            n = len(asked_for)
            shape = (2, n % 3 + 1)
            frames = [np.full(shape, 10 * n + at, "f4").tobytes() for at in range(len(names))]
            return [[header(asked["id"], [output(name, shape) for name in names], stats=(n, 70_000 * n, n)), *frames]]

        with Hostile(answer) as server, mdm.Client(server.address, timeout=5) as client:
            for n in range(1, 13):
                got = client.infer(ROW, "m") if n % 2 else client.submit(ROW, "m").result()
                assert list(got) == names and got.rows == 2 and got.failed == [] and got.stats == (n, 70_000 * n, n)
                assert all(got[name].shape == (2, n % 3 + 1) and (got[name] == 10 * n + at).all() for at, name in enumerate(names))
                assert got.dtypes() == {name: "FP32" for name in names}
                with pytest.raises(ValueError):
                    got[names[0]][0] = 1
            assert min(asked_for) > 65_535


def test_which_layouts_are_kept():
    def kept(outputs, frames, **more):
        headers._known.clear()
        with Hostile(lambda asked, _: [[header(asked["id"], outputs, **more), *frames]]) as server, mdm.Client(server.address) as client:
            client.infer(ROW, "m")
        return len(headers._known)

    assert kept([output("y")], [bytes(16)]) == 1
    assert kept([output("y"), output("z", (2, 1), "INT64")], [bytes(8), bytes(8), bytes(8), bytes(8)], parts=(1, 1)) == 1
    # Where the contents of frames have to be checked too.
    assert kept([output("y", dtype="BOOL")], [bytes(4)]) == 0
    assert kept([output("y", (2,), "BYTES")], [struct.pack("<3Q", 0, 1, 2), b"ab"]) == 0
    assert kept([output("y")], [bytes(16)], stats=None) == 1
    for n in range(1, 3 * headers._MOST_KNOWN):
        packed = header(70_000, [output("y", (1, n))], (1,))
        message = headers.message(packed, [], None)._replace(header=msgpack.unpackb(packed))
        headers.learn(message, mdm.outputs.layout_of(message.header["outputs"], [1]))
        assert headers.known_layout(packed).arrays["y"][2] == (1, n) and len(headers._known) <= headers._MOST_KNOWN


def test_frames_that_do_not_fit_a_layout_that_is_known_end_the_session():
    good = bytes(16)
    for frames in ([b"123"], [bytes(17)], [], [good, good], [b""]):
        wrong = []

        def answer(asked, _, frames=frames, wrong=wrong):
            answers = [[header(asked["id"], [output("y")]), *(frames if wrong else [good])]]
            # What comes behind a header without its frames would be taken for them.
            return answers + [[header(asked["id"] + 1, [output("y")]), good]] if wrong else answers

        with Hostile(answer) as server, mdm.Client(server.address, timeout=5) as client:
            for call in (lambda: client.infer(ROW, "m"), lambda: client.submit(ROW, "m").result()):
                wrong.clear()
                assert call()["y"].shape == (2, 2) and headers._known
                wrong.append(True)
                started = time.monotonic()
                with pytest.raises(mdm.Internal, match="frames"):
                    call()
                assert time.monotonic() - started < 3
                wrong.clear()
                assert call()["y"].shape == (2, 2)


def test_stats_that_cannot_be_read_are_told_when_they_are_asked_for():
    for stats in ([1], {"queue_us": "1", "compute_us": 2, "chunks": 1}, {"queue_us": -1}, "x", b"", b"\xc1", b"\x81\x91\1\2", b"\1\2"):
        count = []

        def answer(asked, _, stats=stats, count=count):
            count.append(1)
            return [[header(asked["id"], [output("y")], stats=(1, 2, 3) if len(count) == 1 else stats), bytes(16)]]

        with Hostile(answer) as server, mdm.Client(server.address, timeout=5) as client:
            assert client.infer(ROW, "m").stats == (1, 2, 3)
            got = client.infer(ROW, "m")
            assert got["y"].shape == (2, 2)
            for _ in range(2):
                with pytest.raises(mdm.Internal, match="stats|queue_us"):
                    got.stats


def test_an_array_in_any_order_is_sent_in_its_shapes(client):
    writer = values.Requests()
    rows = np.arange(16, dtype="f4").reshape(4, 4)
    for data in (rows, rows.T, rows[::-1], np.asfortranarray(rows), rows[:, ::-1], np.broadcast_to(rows[:1], (4, 4))) * 2:
        call = dict(model="m", params=None, timeout=1.0, priority=None, on_bad_row=None)
        request = writer.write(data, values.COPIED, **call)
        assert request.frames == [np.ascontiguousarray(data).tobytes()] and request.nbytes >= 64
        assert np.array_equal(client.infer(data, "echo_FP32")["y"], data)
