"""What tritonclient's gRPC clients do with a server: `tritonclient_grpc.py ADDRESS MLP_ROWS MLP_RESULT`."""

import queue

import numpy as np
import triton
import tritonclient.grpc as library
import tritonclient.grpc.aio as asyncio_library

# How long an answer of a stream may take.
PATIENCE = 30


class Grpc(triton.Protocol):
    def models(self, client):
        return client.get_model_repository_index(as_json=True)["models"]

    def config(self, client, model):
        return client.get_model_config(model, as_json=True)["config"]

    def compressions(self):
        return [{"compression_algorithm": "gzip"}]


def many_at_once(client, protocol):
    answers = queue.Queue()
    for number in range(64):
        row = np.full((1, 4), number, np.float32)
        called = lambda result, error, row=row: answers.put((result, error, row))
        client.async_infer("echo", protocol.echo(row), called)
    for _ in range(64):
        result, error, row = answers.get(timeout=PATIENCE)
        assert error is None and result.as_numpy("y").tobytes() == row.tobytes(), error


def stream(client, protocol):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    send = lambda model, rows, name: client.async_stream_infer(model, protocol.echo(rows), request_id=name)
    for number in range(16):
        send("echo", triton.ROW * number, str(number))
    # One request's error is its own: the stream lives.
    send("none", triton.ROW, "wrong")
    send("echo", triton.ROW * 99, "99")
    good, bad = {}, []
    for _ in range(18):
        result, error = answers.get(timeout=PATIENCE)
        if error is not None:
            bad.append(str(error))
        else:
            good[result.get_response().id] = float(result.as_numpy("y")[0, 0])
    client.stop_stream()
    assert good == {str(number): float(number) for number in [*range(16), 99]}, good
    assert len(bad) == 1 and "Request for unknown model" in bad[0], bad


triton.run(
    library.InferenceServerClient(triton.ADDRESS),
    Grpc(library, asyncio_library, asked={"as_json": True}),
    many_at_once,
    stream,
)
