"""The models that the tests' servers have."""

import os
from pathlib import Path

import numpy as np
import onnx_file
from servers import ROOT


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
        for entry, state in (("echo", "null"), ("shout", '{"mark": "!"}'), ("faulty", "null")):
            models[f"{entry}.proxy"] = f'{{"mdm": 1, "plugin": "libecho_plugin.so", "entry": "{entry}", "state": {state}}}'
    return models


def plugin_library():
    """The plugin of examples/plugin/echo.rs, if it is built."""
    if "TESTED_ECHO_PLUGIN" in os.environ:
        return Path(os.environ["TESTED_ECHO_PLUGIN"])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / profile / "examples" / "libecho_plugin.so" for profile in ("release", "debug")]
    return next((path for path in built if path.exists()), None)
