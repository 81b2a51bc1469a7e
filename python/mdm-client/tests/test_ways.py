"""Another way in: `python -m mdm`."""

import json
import os
import re
import signal
import socket
import threading

import mdm
import numpy as np
import onnx_file
import pytest
from mdm.__main__ import main
from mdm.files import read, write
from mdm.outputs import of_plain
from mdm.results import Result
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


def test_lines_end_at_line_feeds_only(server, tmp_path):
    texts = ["a\x0bb", "c\x0cd\x1c\x1d\x1e", "e\x85f", "g\u2028h\u2029i", "j\rk", "", "l"]
    (tmp_path / "in.txt").write_bytes("\r\n".join(texts).encode())
    out = tmp_path / "out.jsonl"
    assert main(["infer", "--port", str(server.port), "--model", "texts", "--input", str(tmp_path / "in.txt"), "--output", str(out)]) == 0
    assert [json.loads(line)["out"] for line in out.read_bytes().decode().strip("\n").split("\n")] == texts
    (tmp_path / "in.jsonl").write_bytes(b"".join(json.dumps(text, ensure_ascii=False).encode() + b"\n \n" for text in texts if "\r" not in text and "\x0b" not in text and "\x0c" not in text))
    assert [row for _, row in read(tmp_path / "in.jsonl")] == texts[2:4] + texts[5:]
    (tmp_path / "bad.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match="bad.txt: line 2 is no UTF-8: invalid start byte, at its byte 4"):
        read(tmp_path / "bad.txt")


def test_lines_of_json_reach_a_model_of_numbers(server, capsys, tmp_path):
    def run(model, *lines, failing=False):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = tmp_path / "out.jsonl"
        code = main(["infer", "--port", str(server.port), "--model", model, "--input", str(tmp_path / "in.jsonl"), "--output", str(out)])
        assert code == failing
        return capsys.readouterr().err if failing else [json.loads(line) for line in out.open()]

    images = np.load(IMAGES)[:2]
    by_value, by_name = run("digits", *images.tolist()), run("digits", *({"image": row} for row in images.tolist()))
    assert by_value == by_name and [row["label"] for row in by_value] == [0, 1]
    for name in onnx_file.TYPES:
        if name not in ("BYTES", "JSON", "BOOL"):
            assert run(f"echo_{name}", [1, 0], [3, 4]) == [{"y": [1, 0]}, {"y": [3, 4]}], name
    assert run("echo_BOOL", [True, False]) == [{"y": [True, False]}]
    assert run("texts", "a", {"text": "b"}) == [{"out": "a"}, {"out": "b"}]
    assert run("two", {"ids": [1, 2, 3], "text": "x"}) == [{"a": [1, 2, 3], "b": "x"}]
    whole = {"a": [[1, 2], [3, 4], [5, 6]], "c": [1, 2, 3, 4, 5]}
    assert run("whole", whole) == [{"b": whole["a"], "d": whole["c"]}]
    for model, lines, why in (
        ("two", ([1, 2, 3],), "line 1: expected an object"), ("two", ({"ids": [1, 2, 3]},), "line 1: input 'text' is missing"),
        ("two", ({"ids": [1, 2, 3], "text": "x", "z": 1},), "'z' is no input"), ("digits", (images[0].tolist(), [1.0]), "line 2: input 'image': expected a row of shape \\[64\\]"),
        ("echo_INT64", ([1], [1.5]), "line 2: input 'x': expected INT64, got 1.5"), ("echo_INT8", ([300],), "does not hold"), ("echo_INT64", ([2**70],), "does not hold"),
        ("echo_FP32", ([None],), "expected FP32, got null"), ("echo_FP32", ([1e300],), "does not hold"), ("echo_FP32", ([True],), "got true"),
        ("echo_FP32", ([1], [1, 2]), "line 2: .*shape is \\[2\\], and \\[1\\] in line 1"), ("echo_FP32", ([[1], 2],), "1: .*FP32"), ("whole", (whole, whole), "line 2: the model takes its inputs whole"),
    ):
        said = run(model, *lines, failing=True)
        assert re.search(why, said) and "in.jsonl" in said, said


def test_rows_of_anything_go_to_a_model_of_them(server, needs_plugin, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a": [1, null]}\n"text"\n')
    out, params = tmp_path / "out.jsonl", json.dumps({"model_proxy_path": "echo.proxy"})
    ask = ["infer", "--port", str(server.port), "--params", params, "--input", str(tmp_path / "in.jsonl"), "--output"]
    assert main([*ask, str(out)]) == 0
    (key,) = json.loads(out.open().readline())
    assert [json.loads(line)[key] for line in out.open()] == [{"a": [1, None]}, "text"]
    (tmp_path / "in.jsonl").write_text('"text"\n')
    assert main([*ask, str(out)]) == 0


def test_what_a_file_does_not_hold_is_said(server, needs_plugin, capsys, tmp_path):
    at = ["--ip", "127.0.0.1", "--port", str(server.port)]
    np.save(tmp_path / "in.npy", np.array([[1.5, np.nan], [np.inf, 2]], "f4"))
    out = tmp_path / "out.jsonl"
    assert main(["infer", *at, "--model", "echo_FP32", "--input", str(tmp_path / "in.npy"), "--output", str(out)]) == 0
    assert out.read_text() == '{"y": [1.5, null]}\n{"y": [null, 2.0]}\n'
    (tmp_path / "in.txt").write_text("a\n")
    for suffix in ("npz", "npy"):
        out = tmp_path / f"json.{suffix}"
        shout = ["--params", json.dumps({"model_proxy_path": "shout.proxy"}), "--input", str(tmp_path / "in.txt")]
        assert main(["infer", *at, *shout, "--output", str(out)]) == 1 and not out.exists()
        assert "is JSON, which no array holds: use .jsonl" in capsys.readouterr().err
    frames = (np.array([0, 1, 2], "<u8").tobytes(), b"\xffa")
    result = Result(None, [], 2, b"", [], {"out": of_plain("out", "BYTES", [(2,)], [frames])})
    for suffix, why in (("npz", "output 'out' is no UTF-8 text"), ("npy", "output 'out' is no UTF-8 text"), ("jsonl", "row 0 has no form in JSON")):
        with pytest.raises(ValueError, match=f"b.{suffix}: {why}.*mdm.Client"):
            write(tmp_path / f"b.{suffix}", result)
