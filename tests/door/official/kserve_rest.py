"""What KServe's REST client does with a server: `kserve_rest.py ADDRESS MLP_ROWS MLP_RESULT`.

The files are of FP32: rows of 64 numbers, and what another client got for them.
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

ADDRESS, ROWS, RESULT = "http://" + sys.argv[1], sys.argv[2], sys.argv[3]


def request(rows, binary):
    given = InferInput("x", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model_name="mlp", infer_inputs=[given], request_id="a1")


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(ADDRESS)
    assert await client.is_server_ready(ADDRESS)
    assert await client.is_model_ready(ADDRESS, "mlp")
    assert not await client.is_model_ready(ADDRESS, "none")
    print("ok health", flush=True)
    rows = np.fromfile(ROWS, np.float32).reshape(-1, 64)
    expected = np.fromfile(RESULT, np.float32).reshape(-1, 10)
    for binary in (True, False):
        answer = await client.infer(ADDRESS, request(rows, binary), model_name="mlp")
        assert answer.id == "a1" and answer.model_name == "mlp", answer
        given = answer.outputs[0].as_numpy()
        assert given.astype(np.float32).tobytes() == expected.tobytes(), binary
    print("ok infer", flush=True)
    await client.close()


asyncio.run(main())
