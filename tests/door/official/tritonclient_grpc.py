"""What tritonclient's gRPC clients do with a server: `tritonclient_grpc.py ADDRESS MLP_ROWS MLP_RESULT`."""

import asyncio
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
        return [{"compression_algorithm": "gzip"}, {"compression_algorithm": "deflate"}]


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


def parts(client, protocol):
    """A request whose rows come as they finish, and then an answer that is empty and the last."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    rows = np.arange(20_000, dtype=np.float32).reshape(-1, 4)
    asked = {"enable_empty_final_response": True, "parameters": {"ordered": True}}
    client.async_stream_infer("echo", protocol.echo(rows), request_id="parts", **asked)
    come, is_last = [], False
    while not is_last:
        result, error = answers.get(timeout=PATIENCE)
        assert error is None, error
        told = result.get_response()
        assert told.id == "parts", told
        is_last = told.parameters["triton_final_response"].bool_param
        if is_last:
            assert not told.outputs and told.parameters["rows"].int64_param == len(rows), told
        else:
            come.append(result.as_numpy("y"))
    client.stop_stream()
    assert len(come) > 1, "all of it came at once"
    assert np.concatenate(come).tobytes() == rows.tobytes()


def asyncio_stream(client, protocol):
    async def run():
        async with protocol.asyncio_library.InferenceServerClient(triton.ADDRESS) as client:

            async def requests():
                for number in range(16):
                    model = "none" if number == 7 else "echo"
                    given = protocol.echo(triton.ROW * number)
                    yield {"model_name": model, "inputs": given, "request_id": str(number)}

            come = []
            async for result, error in client.stream_infer(requests()):
                come.append(None if error else (result.get_response().id, float(result.as_numpy("y")[0, 0])))
            assert come == [None if n == 7 else (str(n), float(n)) for n in range(16)], come

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


triton.run(
    library.InferenceServerClient(triton.ADDRESS),
    Grpc(library, asyncio_library, asked={"as_json": True}),
    many_at_once,
    stream,
    parts,
    asyncio_stream,
)
