"""What the tests share: the packages that they need, one server, and a bound on the time of each test."""

import faulthandler
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from models import all_models, plugin_library  # noqa: E402
from servers import Server, command  # noqa: E402

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
