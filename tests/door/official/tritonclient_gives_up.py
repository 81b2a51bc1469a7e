"""How tritonclient's gRPC client gives up requests for the model "slow": `tritonclient_gives_up.py ADDRESS`.

Two at their deadline, a call and a stream; then one that is cancelled. The server's counters are looked at by who started this.
"""

import queue
import sys
import time

import numpy as np
import tritonclient.grpc as library
from tritonclient.utils import InferenceServerException

ROWS = 40_000
PATIENCE = 30

client = library.InferenceServerClient(sys.argv[1])
given = library.InferInput("ids", [ROWS, 64], "INT64")
given.set_data_from_numpy(np.zeros((ROWS, 64), np.int64))


def errors():
    (stats,) = client.get_inference_statistics("slow", as_json=True)["model_stats"]
    return int(stats["inference_stats"]["fail"].get("count", 0))


def ended(count):
    until = time.monotonic() + PATIENCE
    while errors() < count:
        assert time.monotonic() < until, f"{errors()} of {count} have ended"
        time.sleep(0.05)


try:
    client.infer("slow", [given], client_timeout=1.5)
    raise AssertionError("it was answered")
except InferenceServerException as error:
    assert "Deadline Exceeded" in str(error), error
ended(1)

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=1.5)
client.async_stream_infer("slow", [given])
result, error = answers.get(timeout=PATIENCE)
assert result is None and "Deadline Exceeded" in str(error), error
client.stop_stream()
ended(2)

call = client.async_infer("slow", [given], lambda result, error: answers.put((result, error)))
time.sleep(1)
call.cancel()
result, error = answers.get(timeout=PATIENCE)
assert result is None and "ancel" in str(error), error
ended(3)
print("ok gives up")
