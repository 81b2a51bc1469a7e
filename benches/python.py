"""The Python client beside a bare pair of pyzmq sockets that sends the same frames to the same server in the same run.

    python3 benches/python.py [--quick]        the bars of the client; `make bench-python` does it

The bare pair is what a program would write with nothing but pyzmq: two DEALERs, a header that was packed once and has its id
put in, blocking `recv`s, and an array made of each answer. The crate's client is measured by `mdm-bench`, where it is built.
A bar that is missed is printed as missed and fails nothing: a time says something about a machine and an hour.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python/mdm-client/src"), str(ROOT / "python/mdm-client/tests")]

import msgpack  # noqa: E402
import numpy as np  # noqa: E402
import onnx_file  # noqa: E402
import zmq  # noqa: E402
from servers import Server, command  # noqa: E402

import mdm  # noqa: E402
from mdm import values, wire  # noqa: E402


class Bare:
    """Two DEALERs, and nothing else."""

    def __init__(self, server):
        self.context = zmq.Context.instance()
        routing_id = b"\1" + os.urandom(15)
        self.port, self.out = (self.context.socket(zmq.DEALER) for _ in range(2))
        for socket, port in ((self.port, server.port), (self.out, server.port_out)):
            socket.setsockopt(zmq.ROUTING_ID, routing_id)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.connect(f"tcp://127.0.0.1:{port}")
            socket.send(msgpack.packb({"v": 1, "type": "hello", "id": 1}))
            socket.recv()
        self.id = 1

    def prepare(self, rows, model):
        return wire.infer(values.columns(rows, values.VIEWED), model=model, timeout=30.0)

    def send(self, request):
        self.id += 1
        self.port.send(wire.with_id(request, self.id), zmq.SNDMORE)
        self.port.send(request.frames[0], 0, request.nbytes < 65_536)
        return self.id

    def receive(self):
        header = msgpack.unpackb(self.out.recv())
        shape = header["outputs"][0]["shape"]
        arrays = [np.frombuffer(self.out.recv(0, False), "f4").reshape(n, *shape[1:]) for n in header["parts"]]
        return header["id"], arrays

    def close(self):
        self.port.close()
        self.out.close()


def each(count, call):
    """Seconds of each of so many calls."""
    took = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took


def small(server, client, bare, quick):
    """Median microseconds of one row."""
    rows = np.ones((1, 64), "f4")
    request = bare.prepare(rows, "mlp")
    count = 500 if quick else 2000

    def ours():
        client.infer(rows, "mlp")["y"]

    def theirs():
        bare.send(request)
        bare.receive()

    # In turns of a few, so that both see the same moods of the machine.
    mine, others = [], []
    for _ in range(10):
        mine += each(count // 10, ours)
        others += each(count // 10, theirs)
    return statistics.median(mine) * 1e6, statistics.median(others) * 1e6


def large(server, client, bare, quick):
    """Gigabytes a second, both directions summed, of 64 MiB in one row."""
    rows = np.ones((1, 16 << 20), "f4")
    request = bare.prepare(rows, "echo")
    count = 3 if quick else 6

    def ours():
        assert client.infer(rows, "echo")["y"].shape == rows.shape

    def theirs():
        bare.send(request)
        assert bare.receive()[1][0].shape == rows.shape

    mine, others = [], []
    for _ in range(count):
        mine += each(1, ours)
        others += each(1, theirs)
    return tuple(2 * rows.nbytes / statistics.median(took) / 1e9 for took in (mine, others))


def pipelined(server, client, bare, quick):
    """Requests a second of one row, 64 in flight from one thread."""
    rows = np.ones((1, 64), "f4")
    request = bare.prepare(rows, "mlp")
    count = 8_000 if quick else 25_000

    def ours():
        waiting = deque()
        for _ in range(count):
            if len(waiting) == 64:
                waiting.popleft().result()["y"]
            waiting.append(client.submit(rows, "mlp"))
        for ticket in waiting:
            ticket.result()

    def theirs():
        flying = 0
        for _ in range(count):
            if flying == 64:
                bare.receive()
                flying -= 1
            bare.send(request)
            flying += 1
        for _ in range(flying):
            bare.receive()

    return count / each(1, ours)[0], count / each(1, theirs)[0]


def threads(server, client, bare, quick):
    """Requests a second of one row, from 8 threads; beside it 8 threads with a bare pair each."""
    rows = np.ones((1, 64), "f4")
    count = 500 if quick else 2_000

    request = bare.prepare(rows, "mlp")
    pairs = [Bare(server) for _ in range(8)]

    def ours(_):
        for _ in range(count):
            client.infer(rows, "mlp")["y"]

    def theirs(pair):
        for _ in range(count):
            pair.send(request)
            pair.receive()

    def together(work):
        workers = [threading.Thread(target=work, args=(pair,)) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    rates = tuple(8 * count / each(1, lambda: together(work))[0] for work in (ours, theirs))
    for pair in pairs:
        pair.close()
    return rates


def import_seconds():
    """How much longer `import mdm` takes than importing what it stands on."""
    with tempfile.TemporaryDirectory() as kept:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        # Compiled before, as what is installed is.
        environment.update(PYTHONPATH=os.pathsep.join(p for p in sys.path if p), PYTHONPYCACHEPREFIX=kept)

        def once(program):
            return each(1, lambda: subprocess.run([sys.executable, "-c", program], check=True, env=environment))[0]

        once("import mdm")
        pairs = [(once("import mdm"), once("import numpy, zmq, msgpack")) for _ in range(7)]
    return statistics.median(ours - theirs for ours, theirs in pairs)


def crate(server, *more):
    """What the crate's client does, by mdm-bench: its results a second, and its median in microseconds."""
    program = command("mdm-bench")
    if program is None or not program.exists():
        return None
    done = subprocess.run(
        [program, "--port", str(server.port), "--model", "mlp", "--rows-per-request", "1", "--duration", "2", *more],
        capture_output=True, text=True, timeout=120,
    )
    return done.stdout if done.returncode == 0 else None


def ticks():
    """Processor time of the whole machine so far, and what of it the host of a virtual machine gave to others."""
    try:
        counted = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0, 0
    return sum(counted), counted[7]


def command_sizes(wheel):
    """A line for each command of a wheel: how large it is in there, and installed."""
    with zipfile.ZipFile(wheel) as archive:
        commands = [file for file in archive.infolist() if ".data/scripts/" in file.filename]
    return [
        f"  {file.filename.rsplit('/', 1)[1]:22}{file.compress_size / 1e6:>5.1f} MB{file.file_size / 1e6:>6.1f} MB installed" for file in commands
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a look")
    quick = parser.parse_args().quick
    before = ticks()
    rng = np.random.default_rng(1)
    models = {"mlp.onnx": onnx_file.slow(2, 64, rng), "echo.onnx": onnx_file.identity("FP32")}
    bars = [
        ("1 row, p50", small, "µs", "at most", 1.25), ("64 MiB echo", large, "GB/s", "at least", 0.9),
        ("64 in flight", pipelined, "/s", "at least", 0.6), ("8 threads", threads, "/s", "at least", None),
    ]
    with Server(models, "--intra-op-threads", "1") as server, mdm.Client(server.address, timeout=30) as client:
        bare = Bare(server)
        print(f"{'':16}{'client':>8}      {'bare pair':>9}    {'ratio':>6}  bar")
        for name, measure, unit, sense, bar in bars:
            measure(server, client, bare, True)
            pairs = [measure(server, client, bare, quick) for _ in range(3 if quick else 5)]
            ours, theirs = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
            if bar is None:
                met, limit = ours >= 9_000, "9000 /s"
            else:
                met, limit = ratio <= bar if sense == "at most" else ratio >= bar, bar
            line = f"{name:16}{ours:>8.4g} {unit:5}{theirs:>8.4g} {unit:5}{ratio:>6.2f}"
            print(f"{line}  {sense} {limit}: {'met' if met else 'MISSED'}", flush=True)
        bare.close()
        for name, flags in (("1 row", ["--concurrency", "1"]), ("64 in flight", ["--concurrency", "64"])):
            print(f"crate, {name}: {crate(server, *flags) or 'mdm-bench is not built'}".strip())
    now = ticks()
    if now[0] > before[0]:
        print(f"{(now[1] - before[1]) / (now[0] - before[0]):.0%} of the time so far was taken by the host")
    took = import_seconds()
    met = took <= 0.15
    print(f"import mdm      {took:.3f} s beyond numpy's, pyzmq's and msgpack's  at most 0.15: {'met' if met else 'MISSED'}")
    for wheel in sorted((ROOT / "dist").glob("*.whl")):
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}: {size:.1f} MB  at most 16: {'met' if size <= 16 else 'MISSED'}")
        for line in command_sizes(wheel):
            print(line)


if __name__ == "__main__":
    main()
