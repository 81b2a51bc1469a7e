"""A server's status has the same keys here as in the commands, whatever it has to tell."""

import json
import subprocess

import mdm
import numpy as np
import pytest
from models import all_models
from servers import Server, command


def keys(of):
    """The keys of what a map or the first entry of a list holds, all the way down; of maps with names of models, none."""
    if isinstance(of, dict):
        return {key: keys(value) for key, value in of.items() if key not in ("settings", "errors")}
    return [keys(of[0])] if isinstance(of, list) and of else None


def test_the_status_has_every_key_that_the_command_prints():
    models = {**all_models(), "v/1/model.onnx": b"junk"}
    with Server(models) as server, mdm.Client(server.address) as client:
        for bad in (False, True):
            if bad:
                with pytest.raises(mdm.Error):
                    client.infer(np.ones((1, 4), "f4"), "v")
            client.infer(np.ones((1, 4), "f4"), "echo_FP32")
            printed = subprocess.run(
                [command("mdm-server-status"), "--port", str(server.port), "--json"], capture_output=True, text=True, timeout=30, check=True
            )
            printed = json.loads(printed.stdout)
            del printed["format"]  # the command's own, which says how this is to be read
            status = client.status()
            assert keys(status) == keys(printed)
            assert len(status["broken"]) == bad
            assert status["totals"]["failed_rows"] == 0
