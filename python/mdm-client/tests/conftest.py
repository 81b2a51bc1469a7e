"""What the tests share: the packages that they need, one server, and a bound on the time of each test."""

import faulthandler
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np  # noqa: E402
import onnx_file  # noqa: E402
from servers import ROOT, Server, command  # noqa: E402

#: A test that takes longer hangs.
SECONDS = 60


def pytest_collection_modifyitems(items):
    if command("mdm-server-start") is not None:
        return
    if os.environ.get("REQUIRE_CLIENTS"):
        raise pytest.UsageError("the commands are not built: run `make build`")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="the commands are not built: run `make build`"))


@pytest.fixture(autouse=True)
def within():
    """Ends a test that hangs, and shows where."""

    def hangs(*_):
        faulthandler.dump_traceback()
        raise TimeoutError(f"the test took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def all_models():
    """The models of the shared server."""
    rng = np.random.default_rng(5)
    models = {f"echo_{dtype}.onnx": onnx_file.identity(dtype) for dtype in onnx_file.TYPES if dtype != "BYTES"}
    models["texts.onnx"] = onnx_file.texts()
    models["slow.onnx"] = onnx_file.slow(20, 256, rng)
    models["mlp.onnx"] = onnx_file.slow(2, 64, rng)
    models["digits.onnx"] = (ROOT / "examples/digits/digits.onnx").read_bytes()
    models["whole.onnx"] = onnx_file.model(
        [("Identity", ["a"], ["b"]), ("Identity", ["c"], ["d"])],
        [("a", "FP32", (3, 2)), ("c", "INT64", (5,))],
        [("b", "FP32", (3, 2)), ("d", "INT64", (5,))],
    )
    models["two.onnx"] = onnx_file.model(
        [("Identity", ["ids"], ["a"]), ("Identity", ["text"], ["b"])],
        [("ids", "INT64", ("N", 3)), ("text", "BYTES", ("N",))],
        [("a", "INT64", ("N", 3)), ("b", "BYTES", ("N",))],
    )
    plugin = plugin_library()
    if plugin is not None:
        models["libecho_plugin.so"] = plugin.read_bytes()
        for entry, state in (("echo", "null"), ("shout", '{"mark": "!"}')):
            models[f"{entry}.proxy"] = f'{{"mdm": 1, "plugin": "libecho_plugin.so", "entry": "{entry}", "state": {state}}}'
    return models


def plugin_library():
    """The plugin of examples/plugin/echo.rs, if it is built."""
    if "MDM_ECHO_PLUGIN" in os.environ:
        return Path(os.environ["MDM_ECHO_PLUGIN"])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / profile / "examples" / "libecho_plugin.so" for profile in ("release", "debug")]
    return next((path for path in built if path.exists()), None)


@pytest.fixture(scope="session")
def server():
    with Server(all_models()) as running:
        yield running


@pytest.fixture
def client(server):
    import mdm

    with mdm.Client(server.address, timeout=30) as opened:
        yield opened


@pytest.fixture
def needs_plugin():
    if plugin_library() is None:
        if os.environ.get("REQUIRE_CLIENTS"):
            pytest.fail("libecho_plugin.so is not there: cargo build --example echo_plugin")
        pytest.skip("libecho_plugin.so is not there: cargo build --example echo_plugin")
