"""A server that answers as a test tells it, on two ROUTERs in a thread."""

import threading

import msgpack
import zmq


class Hostile:
    """``answer(header, frames)`` gives the messages for an infer: lists of frames, a header first (packed if it is a map).

    What it gives is sent on ``port_out``; a tuple ("port", frames) goes out on ``port``.
    """

    def __init__(self, answer=None, hello=None, welcome=None, ask=None):
        self.answer, self.hello, self.welcome, self.ask = answer, hello, welcome, ask
        self.said = []
        self.context = zmq.Context()
        self.routers = [self.context.socket(zmq.ROUTER) for _ in range(2)]
        ports = []
        for router in self.routers:
            router.linger = 0
            ports.append(router.bind_to_random_port("tcp://127.0.0.1"))
        self.port, self.port_out = ports
        self.address = f"127.0.0.1:{self.port}"
        self.stopping = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        poller = zmq.Poller()
        for router in self.routers:
            poller.register(router, zmq.POLLIN)
        while not self.stopping:
            for router, _ in poller.poll(20):
                self._one(self.routers.index(router), router.recv_multipart())

    def _one(self, index, message):
        peer, header, frames = message[0], msgpack.unpackb(message[1]), message[2:]
        self.said.append(header)
        kind, id = header["type"], header["id"]
        send = lambda router, frames: router.send_multipart([peer, *(f if isinstance(f, bytes) else msgpack.packb(f) for f in frames)])
        if kind == "hello" and index == 0:
            ok = {"v": 1, "type": "hello_ok", "id": id, "server_version": "hostile", "port_out": self.port_out, "max_batch_size": 16,
                  "max_request_bytes": 1 << 20, "max_client_bytes": 1 << 24}
            ok = ok if self.hello is None else self.hello(ok)
            if ok is not None:
                send(self.routers[0], [ok])
        elif kind == "hello":
            ok = {"v": 1, "type": "welcome", "id": id}
            ok = ok if self.welcome is None else self.welcome(ok)
            if ok is not None:
                send(self.routers[1], [ok])
        elif kind == "infer":
            for answer in self.answer(header, frames) or ():
                if isinstance(answer, tuple):
                    send(self.routers[0], answer[1])
                else:
                    send(self.routers[1], answer)
        elif self.ask is not None:
            for answer in self.ask(header) or ():
                send(self.routers[0], answer)

    def vanish(self):
        """Closes both sockets, with nothing more said."""
        self.stopping = True
        if self.thread is not threading.current_thread():
            self.thread.join(5)
        self.context.destroy(linger=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.vanish()
