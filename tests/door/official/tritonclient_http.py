"""What tritonclient's HTTP clients do with a server: `tritonclient_http.py ADDRESS MLP_ROWS MLP_RESULT`."""

import numpy as np
import triton
import tritonclient.http as library
import tritonclient.http.aio as asyncio_library


class Http(triton.Protocol):
    def ways_to_send(self):
        both = ({"binary_data": True}, {"binary_data": False})
        return [(sent, wanted) for sent in both for wanted in both]

    def models(self, client):
        return client.get_model_repository_index()

    def config(self, client, model):
        return client.get_model_config(model)

    def compressions(self):
        names = ("request_compression_algorithm", "response_compression_algorithm")
        return [dict.fromkeys(names, way) for way in ("gzip", "deflate")]


def binary_data(client, protocol):
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


def many_at_once(client, protocol):
    rows = [np.full((1, 4), number, np.float32) for number in range(64)]
    open_ones = [client.async_infer("echo", protocol.echo(row)) for row in rows]
    for row, answer in zip(rows, open_ones):
        assert answer.get_result().as_numpy("y").tobytes() == row.tobytes()


triton.run(
    library.InferenceServerClient(triton.ADDRESS, concurrency=8),
    Http(library, asyncio_library, asked={}),
    binary_data,
    many_at_once,
)
