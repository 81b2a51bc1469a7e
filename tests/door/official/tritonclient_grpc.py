"""What tritonclient's gRPC clients do with a server: `tritonclient_grpc.py ADDRESS MLP_ROWS MLP_RESULT`.

MLP_ROWS and MLP_RESULT are files of FP32: rows of 64 numbers, and what another client got for them.
"""

import asyncio
import queue
import sys

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

ADDRESS, ROWS, RESULT = sys.argv[1], sys.argv[2], sys.argv[3]
# How long an answer of a stream may take.
PATIENCE = 30


def tensor(name, datatype, array):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def refused(words, call):
    try:
        call()
    except InferenceServerException as error:
        assert words in str(error), f"{words!r} is not in {error}"
        return
    raise AssertionError(f"not refused: {words}")


def health(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("echo") and client.is_model_ready("old", "3")
    assert not client.is_model_ready("none") and not client.is_model_ready("old", "2")
    about = client.get_server_metadata()
    assert about.name == "mdm" and about.version, about


def metadata(client):
    echo = client.get_model_metadata("echo")
    assert (echo.name, echo.inputs[0].name, list(echo.inputs[0].shape)) == ("echo", "x", [-1, 4]), echo
    config = client.get_model_config("echo").config
    assert config.name == "echo" and config.max_batch_size > 0 and list(config.input[0].dims) == [4], config
    refused("Request for unknown model", lambda: client.get_model_metadata("none"))


def infer(client):
    rows = np.fromfile(ROWS, np.float32).reshape(-1, 64)
    expected = np.fromfile(RESULT, np.float32).reshape(-1, 10)
    outputs = [triton.InferRequestedOutput("y")]
    result = client.infer("mlp", [tensor("x", "FP32", rows)], outputs=outputs, request_id="a 1")
    assert result.get_response().id == "a 1"
    assert result.as_numpy("y").tobytes() == expected.tobytes()
    result = client.infer("old", [tensor("x", "FP32", np.ones((1, 4), np.float32))], model_version="1")
    assert result.get_response().model_version == "1", result.get_response()


def datatypes(client):
    half = np.array([[0.5, -2.0], [65504.0, 0.1]], np.float16)
    assert client.infer("half", [tensor("x", "FP16", half)]).as_numpy("y").tobytes() == half.tobytes()
    bfloat = np.array([[0.5, -2.0], [1e30, 0.1]], ml_dtypes.bfloat16)
    assert client.infer("bfloat", [tensor("x", "BF16", bfloat)]).as_numpy("y").tobytes() == bfloat.tobytes()
    texts = np.array(["Ab", "", "a b"], object)
    given = client.infer("upper", [tensor("x", "BYTES", texts)]).as_numpy("y")
    assert [text.decode() for text in given.ravel()] == ["AB", "", "A B"], given


def compression(client):
    rows = np.zeros((3000, 64), np.float32)
    plain = client.infer("mlp", [tensor("x", "FP32", rows)]).as_numpy("y").tobytes()
    result = client.infer("mlp", [tensor("x", "FP32", rows)], compression_algorithm="gzip")
    assert result.as_numpy("y").tobytes() == plain


def classification(client):
    outputs = [triton.InferRequestedOutput("y", class_count=2)]
    rows = np.array([[1, 4, 2, 3]], np.float32)
    result = client.infer("echo", [tensor("x", "FP32", rows)], outputs=outputs)
    classes = [text.decode().split(":") for text in result.as_numpy("y").ravel()]
    assert [(float(value), index) for value, index, *_ in classes] == [(4.0, "1"), (3.0, "3")], classes


def many_at_once(client):
    answers = queue.Queue()
    for number in range(64):
        row = np.full((1, 4), number, np.float32)
        called = lambda result, error, row=row: answers.put((result, error, row))
        client.async_infer("echo", [tensor("x", "FP32", row)], called)
    for _ in range(64):
        result, error, row = answers.get(timeout=PATIENCE)
        assert error is None and result.as_numpy("y").tobytes() == row.tobytes(), error


def stream(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    row = np.ones((1, 4), np.float32)
    for number in range(16):
        client.async_stream_infer("echo", [tensor("x", "FP32", row * number)], request_id=str(number))
    # One request's error is its own: the stream lives.
    client.async_stream_infer("none", [tensor("x", "FP32", row)], request_id="wrong")
    client.async_stream_infer("echo", [tensor("x", "FP32", row * 99)], request_id="99")
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


def errors(client):
    row = np.ones((1, 4), np.float32)
    refused("Request for unknown model", lambda: client.infer("none", [tensor("x", "FP32", row)]))
    refused("x", lambda: client.infer("echo", [tensor("wrong", "FP32", row)]))
    refused("FP32", lambda: client.infer("echo", [tensor("x", "FP64", row.astype(np.float64))]))
    refused("[1, 3]", lambda: client.infer("echo", [tensor("x", "FP32", row[:, :3].copy())]))


def control(client):
    names = lambda: {model.name: model.state for model in client.get_model_repository_index().models}
    assert {"echo", "mlp", "old"} <= names().keys(), names()
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    client.load_model("echo")
    assert client.is_model_ready("echo") and names()["echo"] == "READY", names()
    refused("", lambda: client.load_model("none"))


def statistics(client):
    def inferences():
        (stats,) = client.get_inference_statistics("echo").model_stats
        assert stats.name == "echo", stats
        return stats.inference_count, stats.inference_stats.success.count

    client.infer("echo", [tensor("x", "FP32", np.ones((1, 4), np.float32))])
    rows, requests = inferences()
    client.infer("echo", [tensor("x", "FP32", np.ones((3, 4), np.float32))])
    assert inferences() == (rows + 3, requests + 1), inferences()


async def asyncio_client():
    async with triton_aio.InferenceServerClient(ADDRESS) as client:
        assert await client.is_server_ready()
        rows = [np.full((2, 4), number, np.float32) for number in range(32)]
        answers = await asyncio.gather(*(client.infer("echo", [tensor("x", "FP32", row)]) for row in rows))
        for row, answer in zip(rows, answers):
            assert answer.as_numpy("y").tobytes() == row.tobytes()


def main():
    client = triton.InferenceServerClient(ADDRESS)
    steps = [health, metadata, infer, datatypes, compression, classification, many_at_once, stream, errors, control]
    steps += [statistics]
    for step in steps:
        step(client)
        print("ok", step.__name__, flush=True)
    client.close()
    asyncio.run(asyncio_client())
    print("ok asyncio", flush=True)


main()
