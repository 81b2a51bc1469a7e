"""``python -m mdm``: the versions and where the commands and the engine are; calls for machines without the commands."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path
from typing import Any, List, Mapping, Optional

import msgpack
import numpy as np
import zmq

from . import Client, Error, FailedPrecondition, __version__
from .files import Lines, inputs, read, write

COMMANDS = ("mdm-server-start", "mdm-server-status", "mdm-server-terminate", "mdm-infer", "mdm-model", "mdm-bench")
#: Rows that are shown where no file is named.
_ROWS = 3


def main(arguments: Optional[List[str]] = None) -> int:
    """Does what the arguments say, and gives the exit code: 0, or 1 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m mdm", description="The client of MDM; without a command: versions and paths.")
    calls = parser.add_subparsers(dest="call")
    infer = calls.add_parser("infer", help="run a file's rows through a model")
    infer.add_argument("--model")
    infer.add_argument("--params", type=json_object, help="a JSON object")
    forms = ".npy, .npz, .txt (a text a line) or .jsonl (a row a line: its value, or an object by the inputs' names)"
    infer.add_argument("--input", required=True, type=Path, help=forms)
    infer.add_argument("--output", type=Path, help=".npy, .npz or .jsonl; without it the first rows are shown")
    infer.add_argument("--timeout", type=float, default=600.0, help="in seconds")
    for call in (infer, calls.add_parser("status", help="how the server is"), calls.add_parser("models", help="what is loaded")):
        call.add_argument("--ip", default="localhost", help="the server's host (localhost)")
        where = call.add_mutually_exclusive_group()
        where.add_argument("--port", type=int, default=5555, help="the server's port (5555)")
        where.add_argument("--server", help="another way to say where: HOST:PORT or ipc://PATH")
    asked = parser.parse_args(arguments)
    try:
        if asked.call is None:
            print_versions()
        elif asked.call == "infer":
            run(asked)
        else:
            with Client(address(asked)) as client:
                print(json.dumps(client.status() if asked.call == "status" else client.models(), indent=2, ensure_ascii=False))
    except (Error, OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # As a shell tells of a program that Ctrl-C has ended.
        return 130
    return 0


def address(asked: Any) -> str:
    """Where the server is."""
    host = f"[{asked.ip}]" if ":" in asked.ip else asked.ip
    return asked.server or f"{host}:{asked.port}"


def json_object(text: str) -> Any:
    """What ``--params`` says."""
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {e}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object; expected one as {{\"name\": 1}}")
    return value


def print_versions() -> None:
    """One fact a line: what is installed, and where."""
    facts = {
        "mdm": f"{__version__}  {Path(__file__).parent}",
        "mdm-serving": version("mdm-serving"),
        "python": f"{sys.version.split()[0]}  {sys.executable}",
        "numpy": np.__version__,
        "pyzmq": f"{zmq.__version__} (libzmq {zmq.zmq_version()})",
        "msgpack": ".".join(map(str, msgpack.version)),
        "onnxruntime": f"{version('onnxruntime')}  {engine() or ''}",
    }
    for name in COMMANDS:
        facts[name] = command(name) or "not there: pip install mdm-serving"
    for name, fact in facts.items():
        print(f"{name:22}{fact}".rstrip())


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def command(name: str) -> Optional[str]:
    """Where a command is: in this Python's environment, or else where the shell finds it."""
    own = Path(sysconfig.get_path("scripts")) / name
    return str(own) if own.exists() else shutil.which(name)


def engine() -> Optional[str]:
    """The library that a server of this environment loads."""
    if os.environ.get("ORT_DYLIB_PATH"):
        return os.environ["ORT_DYLIB_PATH"]
    spec = util.find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for path in sorted(Path(folder, "capi").glob("libonnxruntime.so*")):
            return str(path)
    return None


def run(asked: Any) -> None:
    """Reads the rows, sends them, and writes or shows the result."""
    data = read(asked.input)
    if asked.output is not None and asked.output.suffix not in (".npy", ".npz", ".jsonl"):
        raise ValueError(f"{asked.output}: results are written as .npy, .npz or .jsonl")
    with Client(address(asked), timeout=asked.timeout) as client:
        if isinstance(data, Lines):
            data = inputs(asked.input, data, described(client, asked))
        result = client.infer(data, asked.model, asked.params)
    if asked.output is None:
        for name in result:
            print(f"{name}: {result.dtypes()[name]}, {result.rows} rows" if result.rows is not None else name)
            for row in [result[name]] if result.rows is None else result[name][:_ROWS]:
                print(f"  {row}")
    else:
        write(asked.output, result)


def described(client: Client, asked: Any) -> Mapping[str, Any]:
    """What the model says of its inputs; nothing where the server is too old to be asked."""
    try:
        return client.describe(asked.model, asked.params)
    except FailedPrecondition:
        return {}


if __name__ == "__main__":
    sys.exit(main())
