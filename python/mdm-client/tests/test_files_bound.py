"""The bound on open files is told as such, whichever file it is that cannot be opened."""

import os
import subprocess
import sys

import pytest
from servers import ROOT

# Each bound lets one step more of opening a session succeed.
ONE_BY_ONE = """if 1:
    import collections, os, resource, sys, time
    import numpy as np
    import mdm
    address, rows = sys.argv[1], np.ones((2, 4), "f4")
    with mdm.Client(address, timeout=10) as client:
        assert client.infer(rows, "echo_FP32").rows == 2
    said = collections.Counter()
    def first_free():
        # What was closed is closed a moment later.
        time.sleep(0.2)
        free = os.dup(0)
        os.close(free)
        return free
    used = first_free()
    for more in range(24):
        time.sleep(0.1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with mdm.Client(address, timeout=10) as client:
            try:
                assert client.infer(rows, "echo_FP32").rows == 2
                said["answered"] += 1
            except mdm.ResourceExhausted as e:
                assert "no more open files: a session takes 8" in str(e) and "ulimit -n" in str(e), e
                said["refused"] += 1
            except Exception as e:
                said[f"{more}: {type(e).__name__}: {e}"] += 1
    print(dict(said))
    assert set(said) == {"answered", "refused"} and said["refused"] >= 4, said
"""

# More calls at once than there are files for.
THREADS = """if 1:
    import collections, resource, sys, threading
    import numpy as np
    import mdm
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    rows, said = np.ones((6_000, 256), "f4"), collections.Counter()
    client = mdm.Client(sys.argv[1], timeout=30)
    client.submit(rows[:8], "slow").result()
    def call():
        try:
            client.infer(rows, "slow")
            said["answered"] += 1
        except mdm.ResourceExhausted:
            said["refused"] += 1
        except BaseException as e:
            said[f"{type(e).__name__}: {e}"] += 1
    threads = [threading.Thread(target=call) for _ in range(24)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert set(said) == {"answered", "refused"}, said
    # As many as one likes share a session.
    assert len({result.rows for result in client.fetch_all([client.submit(rows[:8], "slow") for _ in range(200)])}) == 1
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("program", [ONE_BY_ONE, THREADS], ids=["one by one", "threads"])
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are not counted here")
def test_no_more_open_files_is_said(server, program, host):
    path = os.pathsep.join([str(ROOT / "python/mdm-client/src"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, f"{host}:{server.port}"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
