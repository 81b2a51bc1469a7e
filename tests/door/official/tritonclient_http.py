"""What tritonclient's HTTP clients do with a server: `tritonclient_http.py ADDRESS MLP_ROWS MLP_RESULT`.

MLP_ROWS and MLP_RESULT are files of FP32: rows of 64 numbers, and what another client got for them.
"""

import asyncio
import sys

import ml_dtypes
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

ADDRESS, ROWS, RESULT = sys.argv[1], sys.argv[2], sys.argv[3]


def tensor(name, datatype, array, binary=True):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
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
    assert about["name"] == "mdm" and about["version"], about
    assert "binary_tensor_data" in about["extensions"], about


def metadata(client):
    echo = client.get_model_metadata("echo")
    assert echo["name"] == "echo" and echo["inputs"], echo
    assert echo["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 4]}, echo
    config = client.get_model_config("echo")
    assert config["name"] == "echo" and config["max_batch_size"] > 0, config
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["input"][0]["dims"] == [4], config
    refused("Request for unknown model", lambda: client.get_model_metadata("none"))


def infer(client):
    rows = np.fromfile(ROWS, np.float32).reshape(-1, 64)
    expected = np.fromfile(RESULT, np.float32).reshape(-1, 10)
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [triton.InferRequestedOutput("y", binary_data=binary_out)]
            result = client.infer("mlp", [tensor("x", "FP32", rows, binary_in)], outputs=outputs, request_id="a 1")
            assert result.get_response()["id"] == "a 1"
            assert result.as_numpy("y").tobytes() == expected.tobytes(), (binary_in, binary_out)
    # Without a word about outputs all come, as tensors behind the JSON.
    result = client.infer("mlp", [tensor("x", "FP32", rows)])
    assert result.as_numpy("y").tobytes() == expected.tobytes()
    result = client.infer("old", [tensor("x", "FP32", np.ones((1, 4), np.float32))], model_version="1")
    assert result.get_response()["model_version"] == "1", result.get_response()


def datatypes(client):
    half = np.array([[0.5, -2.0], [65504.0, 0.1]], np.float16)
    result = client.infer("half", [tensor("x", "FP16", half)])
    assert result.as_numpy("y").tobytes() == half.tobytes()
    bfloat = np.array([[0.5, -2.0], [1e30, 0.1]], ml_dtypes.bfloat16)
    result = client.infer("bfloat", [tensor("x", "BF16", bfloat)])
    assert result.as_numpy("y").tobytes() == bfloat.tobytes()
    texts = np.array(["Ab", "", "a b"], object)
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs_of(client, "upper")]
        result = client.infer("upper", [tensor(input_of(client, "upper"), "BYTES", texts, binary)], outputs=outputs)
        given = result.as_numpy(outputs_of(client, "upper")[0])
        texts_of = [text.decode() if isinstance(text, bytes) else text for text in given.ravel()]
        assert texts_of == ["AB", "", "A B"], texts_of


def input_of(client, model):
    return client.get_model_metadata(model)["inputs"][0]["name"]


def outputs_of(client, model):
    return [output["name"] for output in client.get_model_metadata(model)["outputs"]]


def compression(client):
    rows = np.zeros((3000, 64), np.float32)
    plain = client.infer("mlp", [tensor("x", "FP32", rows)]).as_numpy("y").tobytes()
    for way in ("gzip", "deflate"):
        result = client.infer(
            "mlp",
            [tensor("x", "FP32", rows)],
            request_compression_algorithm=way,
            response_compression_algorithm=way,
        )
        assert result.as_numpy("y").tobytes() == plain, way


def classification(client):
    outputs = [triton.InferRequestedOutput("y", class_count=2)]
    rows = np.array([[1, 4, 2, 3]], np.float32)
    result = client.infer("echo", [tensor("x", "FP32", rows)], outputs=outputs)
    classes = [text.decode().split(":") for text in result.as_numpy("y").ravel()]
    assert [(float(value), index) for value, index, *_ in classes] == [(4.0, "1"), (3.0, "3")], classes


def many_at_once(client):
    rows = [np.full((1, 4), number, np.float32) for number in range(64)]
    open_ones = [client.async_infer("echo", [tensor("x", "FP32", row)]) for row in rows]
    for row, answer in zip(rows, open_ones):
        assert answer.get_result().as_numpy("y").tobytes() == row.tobytes()


def errors(client):
    row = np.ones((1, 4), np.float32)
    refused("Request for unknown model", lambda: client.infer("none", [tensor("x", "FP32", row)]))
    refused("x", lambda: client.infer("echo", [tensor("wrong", "FP32", row)]))
    refused("FP32", lambda: client.infer("echo", [tensor("x", "FP64", row.astype(np.float64))]))
    refused("[1, 3]", lambda: client.infer("echo", [tensor("x", "FP32", row[:, :3].copy())]))


def control(client):
    names = lambda: {model["name"]: model.get("state") for model in client.get_model_repository_index()}
    assert {"echo", "mlp", "old"} <= names().keys(), names()
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    client.load_model("echo")
    assert client.is_model_ready("echo") and names()["echo"] == "READY", names()
    refused("", lambda: client.load_model("none"))


def statistics(client):
    row = np.ones((1, 4), np.float32)

    def inferences():
        (stats,) = client.get_inference_statistics("echo")["model_stats"]
        assert stats["name"] == "echo", stats
        return stats["inference_count"], stats["inference_stats"]["success"]["count"]

    client.infer("echo", [tensor("x", "FP32", row)])
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
    client = triton.InferenceServerClient(ADDRESS, concurrency=8)
    steps = [health, metadata, infer, datatypes, compression, classification, many_at_once, errors, control]
    steps += [statistics]
    for step in steps:
        step(client)
        print("ok", step.__name__, flush=True)
    client.close()
    asyncio.run(asyncio_client())
    print("ok asyncio", flush=True)


main()
