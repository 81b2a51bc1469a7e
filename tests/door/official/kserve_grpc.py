"""What KServe's gRPC client does with a server: `kserve_grpc.py ADDRESS MLP_ROWS MLP_RESULT`.

The files are of FP32: rows of 64 numbers, and what another client got for them.
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

ADDRESS, ROWS, RESULT = sys.argv[1], sys.argv[2], sys.argv[3]


async def main():
    async with InferenceGRPCClient(ADDRESS) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("mlp")
        print("ok health", flush=True)
        rows = np.fromfile(ROWS, np.float32).reshape(-1, 64)
        expected = np.fromfile(RESULT, np.float32).reshape(-1, 10)
        for binary in (True, False):
            given = InferInput("x", list(rows.shape), "FP32")
            given.set_data_from_numpy(rows, binary_data=binary)
            request = InferRequest(model_name="mlp", infer_inputs=[given], request_id="a1")
            answer = await client.infer(request)
            assert answer.id == "a1" and answer.model_name == "mlp", answer
            assert answer.outputs[0].as_numpy().astype(np.float32).tobytes() == expected.tobytes(), binary
        print("ok infer", flush=True)


asyncio.run(main())
