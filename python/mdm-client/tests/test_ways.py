"""Another way in: `python -m mdm`."""

import json
import os
import re
import signal
import socket
import threading

import mdm
import numpy as np
import pytest
from mdm.__main__ import main
from servers import ROOT

IMAGES = ROOT / "examples/digits/images.npy"


def test_python_m_mdm_tells_versions_and_paths(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    for name in ("mdm ", mdm.__version__, "pyzmq", "onnxruntime", "mdm-server-start"):
        assert name in said


def test_python_m_mdm_asks_and_infers(server, capsys, tmp_path):
    at = ["--server", server.address]
    assert main(["status", *at]) == 0 and json.loads(capsys.readouterr().out)["workers"]
    assert main(["models", *at]) == 0 and isinstance(json.loads(capsys.readouterr().out), list)
    assert main(["infer", *at, "--model", "digits", "--input", str(IMAGES)]) == 0
    assert "label: INT64, 1797 rows" in capsys.readouterr().out
    for suffix in ("npz", "jsonl"):
        out = tmp_path / f"out.{suffix}"
        assert main(["infer", *at, "--model", "digits", "--input", str(IMAGES), "--output", str(out)]) == 0
    labels = np.load(tmp_path / "out.npz")["label"]
    assert [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").open()] == labels.tolist()
    (tmp_path / "in.txt").write_text("a\nb\n")
    out = tmp_path / "texts.npy"
    assert main(["infer", *at, "--model", "texts", "--input", str(tmp_path / "in.txt"), "--output", str(out)]) == 0
    assert np.load(out).tolist() == ["a", "b"]


def test_python_m_mdm_names_the_bad_file_and_the_bad_params(capsys, tmp_path):
    for name, content, why in (
        ("a.jsonl", b'{"a": 1}\n\n{x}\n', "a.jsonl: line 3 is no JSON"), ("a.npy", b"", "a.npy: "), ("b.npy", b"no array", "b.npy: "),
        ("a.npz", b"PK no zip", "a.npz: "), ("a.txt", b"\xff\xff", "a.txt: "), ("a.csv", b"1,2", "a.csv: .*expected .npy"),
        ("c.jsonl", b"[" * 100_000, "c.jsonl: "),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["infer", "--input", str(tmp_path / name)]) == 1
        assert re.search(why, capsys.readouterr().err)
    for params, why in (("{x", "'{x' is no JSON: Expecting"), ("[1]", "no JSON object; expected one as")):
        with pytest.raises(SystemExit):
            main(["infer", "--input", str(IMAGES), "--params", params])
        assert why in capsys.readouterr().err


def test_ctrl_c_ends_python_m_mdm_quietly(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            assert main(["status", "--server", f"127.0.0.1:{silent.getsockname()[1]}"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert tuple(capsys.readouterr()) == ("", "")


def test_python_m_mdm_says_what_is_wrong(server, capsys, tmp_path):
    at = ["--server", server.address]
    for arguments, why in (
        (["infer", *at, "--input", str(tmp_path / "none.npy")], "none.npy"), (["infer", *at, "--model", "nothing", "--input", str(IMAGES)], "NOT_FOUND"),
        (["infer", *at, "--input", __file__], "expected .npy"), (["infer", *at, "--input", str(IMAGES), "--output", "x.csv"], "x.csv"),
        (["status", "--server", "nowhere"], "no port"),
    ):
        assert main(arguments) == 1
        assert why in capsys.readouterr().err
