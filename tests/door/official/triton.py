"""What tritonclient's clients do with a server, whichever protocol they speak.

`tritonclient_http.py` and `tritonclient_grpc.py` are the programs: `PROGRAM ADDRESS MLP_ROWS MLP_RESULT`. MLP_ROWS and
MLP_RESULT are files of FP32: rows of 64 numbers, and what another client got for them. What differs between the two
libraries is their `Protocol`.
"""

import asyncio
import sys

import ml_dtypes
import numpy as np
from tritonclient.utils import InferenceServerException

ADDRESS, ROWS, RESULT = sys.argv[1], sys.argv[2], sys.argv[3]
# A row for the model "echo".
ROW = np.ones((1, 4), np.float32)


class Protocol:
    """One of the libraries. `asked` is what its questions need to be answered with dictionaries."""

    def __init__(self, library, asyncio_library, asked):
        self.library, self.asyncio_library, self.asked = library, asyncio_library, asked

    def tensor(self, name, datatype, array, **how):
        given = self.library.InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, **how)
        return given

    def echo(self, rows):
        return [self.tensor("x", "FP32", rows)]

    def ask(self, question, *about):
        return question(*about, **self.asked)

    def told(self, result):
        return result.get_response(**self.asked)

    def ways_to_send(self):
        """What a tensor, and an output, may be told besides."""
        return [({}, {})]

    def models(self, client):
        """The index, as a list."""
        raise NotImplementedError

    def config(self, client, model):
        raise NotImplementedError

    def compressions(self):
        raise NotImplementedError


def refused(words, call):
    try:
        call()
    except InferenceServerException as error:
        assert words in str(error), f"{words!r} is not in {error}"
        return
    raise AssertionError(f"not refused: {words}")


def health(client, protocol):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("echo") and client.is_model_ready("old", "3")
    assert not client.is_model_ready("none") and not client.is_model_ready("old", "2")
    about = protocol.ask(client.get_server_metadata)
    assert about["name"] == "mdm" and about["version"], about
    assert {"classification", "statistics"} <= set(about["extensions"]), about


def metadata(client, protocol):
    echo = protocol.ask(client.get_model_metadata, "echo")
    (given,) = echo["inputs"]
    assert (echo["name"], given["name"], given["datatype"]) == ("echo", "x", "FP32"), echo
    # As JSON, the messages of gRPC have long numbers as texts.
    assert [int(dim) for dim in given["shape"]] == [-1, 4], echo
    config = protocol.config(client, "echo")
    assert config["name"] == "echo" and config["max_batch_size"] > 0, config
    (given,) = config["input"]
    assert given["data_type"] == "TYPE_FP32" and [int(dim) for dim in given["dims"]] == [4], config
    refused("Request for unknown model", lambda: client.get_model_metadata("none"))


def infer(client, protocol):
    rows = np.fromfile(ROWS, np.float32).reshape(-1, 64)
    expected = np.fromfile(RESULT, np.float32).reshape(-1, 10)
    for sent, wanted in protocol.ways_to_send():
        given = [protocol.tensor("x", "FP32", rows, **sent)]
        outputs = [protocol.library.InferRequestedOutput("y", **wanted)]
        result = client.infer("mlp", given, outputs=outputs, request_id="a 1")
        assert protocol.told(result)["id"] == "a 1"
        assert result.as_numpy("y").tobytes() == expected.tobytes(), (sent, wanted)
    # Without a word about outputs all come.
    result = client.infer("mlp", [protocol.tensor("x", "FP32", rows)])
    assert result.as_numpy("y").tobytes() == expected.tobytes()
    result = client.infer("old", protocol.echo(ROW), model_version="1")
    assert protocol.told(result)["model_version"] == "1", protocol.told(result)


def datatypes(client, protocol):
    half = np.array([[0.5, -2.0], [65504.0, 0.1]], np.float16)
    result = client.infer("half", [protocol.tensor("x", "FP16", half)])
    assert result.as_numpy("y").tobytes() == half.tobytes()
    bfloat = np.array([[0.5, -2.0], [1e30, 0.1]], ml_dtypes.bfloat16)
    result = client.infer("bfloat", [protocol.tensor("x", "BF16", bfloat)])
    assert result.as_numpy("y").tobytes() == bfloat.tobytes()
    texts = np.array(["Ab", "", "a b"], object)
    for sent, wanted in protocol.ways_to_send():
        given = [protocol.tensor("x", "BYTES", texts, **sent)]
        outputs = [protocol.library.InferRequestedOutput("y", **wanted)]
        loud = client.infer("upper", given, outputs=outputs).as_numpy("y")
        loud = [text.decode() if isinstance(text, bytes) else text for text in loud.ravel()]
        assert loud == ["AB", "", "A B"], loud


def compression(client, protocol):
    given = [protocol.tensor("x", "FP32", np.zeros((3000, 64), np.float32))]
    plain = client.infer("mlp", given).as_numpy("y").tobytes()
    for how in protocol.compressions():
        result = client.infer("mlp", given, **how)
        assert result.as_numpy("y").tobytes() == plain, how


def classification(client, protocol):
    outputs = [protocol.library.InferRequestedOutput("y", class_count=2)]
    rows = np.array([[1, 4, 2, 3]], np.float32)
    result = client.infer("echo", protocol.echo(rows), outputs=outputs)
    classes = [text.decode().split(":") for text in result.as_numpy("y").ravel()]
    assert [(float(value), index) for value, index, *_ in classes] == [(4.0, "1"), (3.0, "3")], classes


def errors(client, protocol):
    infer = lambda model, name, datatype, rows: client.infer(model, [protocol.tensor(name, datatype, rows)])
    refused("Request for unknown model", lambda: infer("none", "x", "FP32", ROW))
    refused("x", lambda: infer("echo", "wrong", "FP32", ROW))
    refused("FP32", lambda: infer("echo", "x", "FP64", ROW.astype(np.float64)))
    refused("[1, 3]", lambda: infer("echo", "x", "FP32", ROW[:, :3].copy()))


def control(client, protocol):
    names = lambda: {model["name"]: model.get("state") for model in protocol.models(client)}
    assert {"echo", "mlp", "old"} <= names().keys(), names()
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    client.load_model("echo")
    assert client.is_model_ready("echo") and names()["echo"] == "READY", names()
    refused("", lambda: client.load_model("none"))


def statistics(client, protocol):
    def inferences():
        (stats,) = protocol.ask(client.get_inference_statistics, "echo")["model_stats"]
        assert stats["name"] == "echo", stats
        return int(stats["inference_count"]), int(stats["inference_stats"]["success"]["count"])

    client.infer("echo", protocol.echo(ROW))
    rows, requests = inferences()
    client.infer("echo", protocol.echo(np.ones((3, 4), np.float32)))
    assert inferences() == (rows + 3, requests + 1), inferences()


async def asyncio_client(protocol):
    async with protocol.asyncio_library.InferenceServerClient(ADDRESS) as client:
        assert await client.is_server_ready()
        rows = [np.full((2, 4), number, np.float32) for number in range(32)]
        answers = await asyncio.gather(*(client.infer("echo", protocol.echo(row)) for row in rows))
        for row, answer in zip(rows, answers):
            assert answer.as_numpy("y").tobytes() == row.tobytes()


def run(client, protocol, *own_steps):
    """Takes every step, those of one protocol alone too."""
    steps = [health, metadata, infer, datatypes, compression, classification, *own_steps, errors, control, statistics]
    for step in steps:
        step(client, protocol)
        print("ok", step.__name__, flush=True)
    client.close()
    asyncio.run(asyncio_client(protocol))
    print("ok asyncio", flush=True)
