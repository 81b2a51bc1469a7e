"""Starts real servers for tests: each over a folder of its own, on free ports, and ended with the test."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def command(name):
    """A built command: of TESTED_MDM_BIN, or of target/release or target/debug, whichever is newer."""
    if "TESTED_MDM_BIN" in os.environ:
        return Path(os.environ["TESTED_MDM_BIN"]) / name
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / profile / name for profile in ("release", "debug")]
    built = [path for path in built if path.exists()]
    return max(built, key=lambda path: path.stat().st_mtime) if built else None


class Server:
    """A running server. Leave its ``with`` to end it, however the test ended."""

    def __init__(self, models, *flags, port=0, port_out=0, program=None):
        self.folder = Path(tempfile.mkdtemp(prefix="mdm-"))
        for name, content in models.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.sockets = self.folder / "s"
        self.log = self.folder / "log.txt"
        arguments = [
            program or command("mdm-server-start"), "--port", str(port), "--port-out", str(port_out), "--run-script-dir", self.folder,
            "--zeromq-sock-tmp-dir", self.sockets, "--logger", self.log, *flags,
        ]
        if not any(str(flag).startswith("--num-worker") for flag in flags):
            arguments += ["--num-worker", "2"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder)
        self.ready = ""
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        end = time.monotonic() + 60
        while not self.ready.startswith("ready "):
            if self.process.poll() is not None or time.monotonic() > end:
                reader.join(1)
                self.end()
                raise RuntimeError(f"the server did not start: {self.ready}")
            time.sleep(0.005)
        facts = dict(word.split("=") for word in self.ready.split()[1:] if "=" in word)
        self.port, self.port_out = int(facts["port"]), int(facts["port_out"])
        self.address = f"localhost:{self.port}"

    def _read(self):
        for line in self.process.stdout:
            self.ready = line if line.startswith("ready ") else self.ready + ("" if self.ready.startswith("ready ") else line)

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        self.process.kill()
        self.process.wait(20)

    def end(self):
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
