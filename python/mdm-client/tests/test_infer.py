"""What a call gives: the same bytes as the crate's client, for every datatype and every way to hold rows."""

import os
import subprocess
import sys
import types

import mdm
import numpy as np
import onnx_file
import pytest
from mdm import datatypes
from packages import needed
from servers import ROOT, command

FIXED = [name for name in onnx_file.TYPES if name not in ("BYTES", "BF16")]


def some(dtype, shape, rng):
    """Any bytes of that datatype."""
    kind = datatypes.ALL[dtype].numpy
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape)


@pytest.mark.parametrize("dtype", FIXED)
@pytest.mark.parametrize("rows", [1, 3, 500])
def test_every_datatype_comes_back_bit_for_bit(client, dtype, rows):
    sent = some(dtype, (rows, 4), np.random.default_rng(rows))
    got = client.infer(sent, f"echo_{dtype}")
    assert got.rows == rows and got.dtypes() == {"y": dtype}
    assert got["y"].dtype == sent.dtype and got["y"].shape == sent.shape
    assert got["y"].tobytes() == sent.tobytes()
    assert not got["y"].flags.writeable and got["y"] is got.only()


def test_bf16_by_its_bits_and_by_ml_dtypes(client):
    bits = np.arange(0x3F80, 0x3F80 + 12, dtype=np.uint16).reshape(3, 4)
    got = client.infer(mdm.BF16(bits), "echo_BF16")["y"]
    assert got.view(np.uint16).tobytes() == bits.tobytes()
    ml_dtypes = needed("ml_dtypes")
    assert got.dtype == ml_dtypes.bfloat16
    again = client.infer(got, "echo_BF16")
    assert again.dtypes() == {"y": "BF16"} and again["y"].tobytes() == bits.tobytes()
    with pytest.raises(mdm.InvalidArgument, match="uint16"):
        mdm.BF16(np.zeros((2, 2), "f4"))


def test_bf16_is_uint16_without_ml_dtypes(server):
    program = f"""if 1:
        import sys; sys.modules["ml_dtypes"] = None
        import mdm, numpy as np
        bits = np.arange(8, dtype=np.uint16).reshape(2, 4)
        got = mdm.Client({server.address!r}).infer(mdm.BF16(bits), "echo_BF16")
        assert got["y"].dtype == np.uint16 and (got["y"] == bits).all() and got.dtypes() == {{"y": "BF16"}}
        assert (mdm.Client({server.address!r}).infer(bits, "echo_UINT16")["y"] == bits).all()
    """
    python(program)


def python(program, **environment):
    import sys

    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path, **environment}, timeout=50,
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rows", [1, 7, 1797])
def test_digits_as_the_crates_client_has_them(server, client, tmp_path, rows):
    images = np.load(ROOT / "examples/digits/images.npy")[:rows]
    np.save(tmp_path / "in.npy", images)
    subprocess.run(
        [command("mdm-infer"), "--port", str(server.port), "--model", "digits", "--input", tmp_path / "in.npy",
         "--output", tmp_path / "out.npz"], check=True, timeout=50, capture_output=True,
    )
    crate = np.load(tmp_path / "out.npz")
    got = client.infer(images, model="digits")
    ticket = client.submit(images, model="digits").result()
    assert set(crate) == set(got)
    for name in crate:
        # The same chunks are not promised, and floats of other chunks may differ in their last bit: but a row at a time.
        one = client.infer(images[:1], "digits")[name]
        assert one.tobytes() == crate[name][:1].tobytes() or np.allclose(one, crate[name][:1], atol=1e-6)
        assert got[name].dtype == crate[name].dtype and got[name].shape == crate[name].shape
        if got[name].dtype.kind == "i":
            assert got[name].tobytes() == crate[name].tobytes() == ticket[name].tobytes()
        else:
            assert np.allclose(got[name], crate[name], atol=1e-6)
    labels = np.load(ROOT / "examples/digits/labels.npy")[:rows]
    assert (got["label"] == labels).mean() > 0.97


@pytest.mark.parametrize("dtype", ["FP32", "INT64", "UINT8", "FP64", "BOOL"])
def test_what_mdm_infer_writes_is_what_python_gets(server, client, tmp_path, dtype):
    sent = some(dtype, (2000, 5), np.random.default_rng(1))
    np.save(tmp_path / "in.npy", sent)
    subprocess.run(
        [command("mdm-infer"), "--port", str(server.port), "--model", f"echo_{dtype}", "--input", tmp_path / "in.npy",
         "--output", tmp_path / "out.npy"], check=True, timeout=50, capture_output=True,
    )
    assert np.load(tmp_path / "out.npy").tobytes() == client.infer(sent, f"echo_{dtype}")["y"].tobytes()


def test_odd_arrays_are_converted(client):
    whole = np.arange(60, dtype="f4").reshape(6, 10)
    for odd in (
        np.asfortranarray(whole), whole[::2], whole[:, ::3], whole[::-1], whole.astype(">f4"), whole.T[:4],
        np.broadcast_to(whole[:1], (6, 10)), np.asfortranarray(whole.astype(">f4")),
        np.tile(whole, (2000, 1))[::2],
    ):
        got = client.infer(odd, "echo_FP32")["y"]
        assert got.dtype == np.dtype("<f4") and np.array_equal(got, odd)
        assert np.array_equal(client.submit(odd, "echo_FP32").result()["y"], odd)


TEXTS = ["", "a", "Ünïcödé 中文 🎉", "x" * 70_000]


@pytest.mark.parametrize(
    "texts",
    [TEXTS, tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), [t.encode() for t in TEXTS], np.array([t.encode() for t in TEXTS]),
     ["a", b"b", "c", "d"]],
    ids=["list", "tuple", "U", "object", "bytes", "S", "mixed"],
)
def test_texts_are_bytes(client, texts):
    got = client.infer(texts, "texts")
    expected = [t.decode() if isinstance(t, bytes) else str(t) for t in texts]
    assert got.only().tolist() == expected and got.only().shape == (4,) and got.dtypes() == {"out": "BYTES"}
    assert got.bytes("out").tolist() == [t.encode() for t in expected]


def test_bytes_that_are_no_text_stay_bytes(client, needs_plugin):
    rows = [b"\xff\xfe", b"text"]
    assert client.infer(rows, "echo").only().tolist() == rows
    table = np.array([["a", "b"], ["c", "d"]], object)
    assert client.infer(table, "echo").only().tolist() == table.tolist()


def test_rows_of_anything(client, needs_plugin):
    rows = [{"a": [1, 2.5, None, True], "b": {"c": "d"}}, [1, 2], 7, "text", None, np.float32(0.5), np.arange(3), {1: 2}]
    got = client.infer(rows, "echo")
    assert got.dtypes() == {"": "JSON"} or list(got.dtypes().values()) == ["JSON"]
    assert got.only() == [*rows[:5], 0.5, [0, 1, 2], {1: 2}]
    many = [{"n": n} for n in range(3000)]
    assert client.infer(many, "echo").only() == many
    shouted = client.infer(["hi", "you"], "shout").only()
    assert [row["loud"] for row in shouted] == ["HI!", "YOU!"]


def test_inputs_by_name_and_models_without_a_batch(client):
    ids, text = np.arange(9).reshape(3, 3), ["x", "y", "z"]
    got = client.infer({"ids": ids, "text": text}, "two")
    assert list(got) == ["a", "b"] and len(got) == 2 and got.rows == 3
    assert np.array_equal(got["a"], ids) and got["b"].tolist() == text
    with pytest.raises(mdm.InvalidArgument, match=r"2 outputs.*'a', 'b'"):
        got.only()
    with pytest.raises(KeyError, match="no output 'c'"):
        got["c"]
    whole = client.infer({"a": np.ones((3, 2), "f4"), "c": np.arange(5)}, "whole")
    assert whole.rows is None and whole["b"].shape == (3, 2) and whole["d"].tolist() == [0, 1, 2, 3, 4]
    parts = list(client.stream({"a": np.ones((3, 2), "f4"), "c": np.arange(5)}, "whole"))
    assert len(parts) == 1 and parts[0].rows is None and parts[0]["d"].shape == (5,)


class Strange:
    def __array__(self, *_, **__):
        raise RuntimeError("it is on another device")


@pytest.mark.parametrize(
    "data, why",
    [
        (np.float32(1), "no dimension"), (np.array(1), "no dimension"), (np.zeros((0, 4), "f4"), "no rows"), ([], "no rows"), ((), "no rows"),
        ("text", "one str is no rows"), (b"text", "one bytes is no rows"), (None, "None"), ({}, "empty dict"), (3, "int is not taken"),
        ((x for x in "ab"), "generator is not taken"), (np.zeros((2, 2), "c8"), "complex64"), (np.zeros(2, "M8[s]"), "datetime64"),
        (np.zeros(2, np.longdouble), "float"), (np.zeros(2, [("a", "i4")]), "no datatype"), (np.array(["a", None], object), "element 1 is missing"),
        (["a\ud800"], "element 0 is no text"), ([object()], "row 0"), ([{1, 2}], "row 0"), ([1, 2**70], "row 1"), (Strange(), "another device"),
        (np.ma.masked_array([[1.0, 2], [3, 4]], [[0, 0], [1, 0]], "f4"), r"element \[1, 0\] is masked"),
        (np.array(["a", np.nan], object), "element 1 is missing"), (np.array([0.5, None], object), "element 1 is missing"),
        ({1: [2]}, "name 1 is int"), (np.array([1, 2], object), "element 0 is int"),
    ],
)
def test_data_that_has_no_form_is_refused_and_named(client, data, why):
    for call in (client.infer, client.submit, client.stream):
        with pytest.raises(mdm.InvalidArgument, match=why):
            call(data, "echo_FP32")
    if not isinstance(data, dict):
        with pytest.raises(ValueError, match=r"input 'pixels': "):
            client.infer({"pixels": data}, "echo_FP32")


def test_what_no_server_takes_is_refused_before_it_is_sent(client):
    row = np.zeros((1, 4), "f4")
    deep = current = {}
    for _ in range(70):
        current["p"] = {}
        current = current["p"]
    cycle = []
    cycle.append(cycle)
    for params, why in (
        ({"p": deep}, "nested too deep"), ({"p": cycle}, "nested too deep"), ({"p": [0] * 10_001}, "more than 10000 values"), ({"p": "x" * 300_000}, "262144"),
        ({f"{n}_path": "a" for n in range(300)}, "256"), ({"a_path": "x" * 5000}, "4096"), ({"p": b"x"}, "bytes"), ({1: 2}, "key 1"),
        ({"p": {"q": {2: 3}}}, "key 2"), ({"p": object()}, "no form"), ({"p": 2**70}, "no form"), ([1], "expected a dict"),
    ):
        with pytest.raises(mdm.InvalidArgument, match=why):
            client.infer(row, "echo_FP32", params)
    for data, model, why in (
        ({f"n{n}": row for n in range(1025)}, "m", "1024"), ({"x" * 1025: row}, "m", "1024 bytes"), (row, "m" * 5000, "4096"), (row, 3, "model is int"),
        (np.zeros((1,) * (32 if np.__version__ < "2" else 64), "f4"), "echo_FP32", "dimension|shape|rank"),
    ):
        with pytest.raises(mdm.InvalidArgument, match=why):
            client.infer(data, model)
    for argument in ({"priority": "urgent"}, {"on_bad_row": "ignore"}, {"timeout": 0}, {"timeout": -1}, {"timeout": "1"}, {"timeout": float("nan")}):
        with pytest.raises(mdm.InvalidArgument, match=next(iter(argument))):
            client.infer(row, "echo_FP32", **argument)
    large = np.broadcast_to(np.zeros((1, 1024), "f4"), (1 << 18, 1024))
    with pytest.raises(mdm.ResourceExhausted, match="max_request_bytes"):
        client.infer(large, "echo_FP32")
    # And the session goes on.
    assert client.infer(row, "echo_FP32").rows == 1


@pytest.mark.parametrize(
    "call, kind, base",
    [
        (lambda c: c.infer(np.zeros((1, 4), "f4"), "nothing"), mdm.NotFound, LookupError),
        (lambda c: c.infer(np.zeros((1, 4), "f4"), "../x"), mdm.PermissionDenied, PermissionError),
        (lambda c: c.infer(np.zeros((1, 4), "f8"), "echo_FP32"), mdm.InvalidArgument, ValueError),
        (lambda c: c.infer(np.zeros((20_000, 256), "f4"), "slow", timeout=0.002), mdm.DeadlineExceeded, TimeoutError),
        (lambda c: c.load("nothing"), mdm.NotFound, LookupError),
        (lambda c: c.describe("nothing"), mdm.NotFound, LookupError),
    ],
)
def test_an_error_is_of_its_code_and_of_what_python_programs_catch(client, call, kind, base):
    import pickle

    # A session is there: to open one counts in a call's time.
    assert client.infer(np.zeros((1, 4), "f4"), "echo_FP32").rows == 1
    with pytest.raises(base) as caught:
        call(client)
    error = caught.value
    assert type(error) is kind and error.code in str(error) and error.message in str(error) and error.rows is None
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)


def test_the_other_calls(client, server):
    assert client.load("mlp")["name"] == "mlp" and "mlp" in [m["name"] for m in client.models()]
    assert client.describe("mlp")["inputs"][0]["dtype"] == "FP32"
    assert client.describe(params={"model_proxy_path": "mlp.onnx"})["kind"] == "batched"
    client.unload("mlp")
    assert "mlp" not in [m["name"] for m in client.models()]
    status = client.status()
    assert status["workers"][0]["device"] == "cpu" and client.hello()["port_out"] == server.port_out
    for latency in (status["latency_us"], *(window["latency_us"] for window in status["recent"])):
        assert set(latency) == {"p50", "p90", "p99"}
        assert None in latency.values() or all(latency.values()), "nothing measured is None, not 0"
    for shown in (status, client.models(), client.describe("mlp"), client.infer(["<b>"], "texts")):
        table = shown._repr_html_()
        assert "<table>" in table and "<b>" not in table.replace("<b>MDM", "")


def test_ipc_and_a_port_out_of_its_own(server):
    row = np.ones((1, 4), "f4")
    with mdm.Client(f"ipc://{server.sockets}/mdm-{server.port}.in") as local:
        assert local.infer(row, "echo_FP32").rows == 1
    for port_out in (f"127.0.0.1:{server.port_out}", server.port_out):
        with mdm.Client(f"tcp://localhost:{server.port}", port_out=port_out) as told:
            assert told.infer(row, "echo_FP32").rows == 1
    with mdm.Client(server.address, port_out=server.port, connect_timeout=5) as wrong:
        # There the routing id is in use already.
        with pytest.raises(mdm.Unavailable, match="port_out.*closed"):
            wrong.infer(row, "echo_FP32")
    with mdm.Client(f"localhost:{server.port_out}") as wrong:
        with pytest.raises(mdm.FailedPrecondition, match="connect to its port instead"):
            wrong.infer(row, "echo_FP32")


def test_addresses_and_what_is_not_there_yet():
    for address in ("localhost", "localhost:0", "localhost:70000", "tcp://:5555", "::1:5555", "http://a:80", "ipc://", "a:٣", 5555):
        with pytest.raises(mdm.InvalidArgument, match="server address"):
            mdm.Client(address)
    for argument in ({"token": "x"}, {"curve": {}}):
        with pytest.raises(mdm.FailedPrecondition, match="no server has"):
            mdm.Client("localhost:5555", **argument)


def test_times_are_numbers_of_seconds_of_any_kind(server):
    rows = np.ones((2, 4), "f4")
    for argument in ("timeout", "connect_timeout", "heartbeat_timeout"):
        for wrong in ("5", 0, -1, True, float("nan"), np.bool_(True), [1], 0 * 1j):
            with pytest.raises(mdm.InvalidArgument, match=f"{argument} is .*, expected a number of seconds above 0"):
                mdm.Client(server.address, **{argument: wrong})
        for right in (5, np.float32(5), np.int64(5), 1e9, 10**400, float("inf")):
            with mdm.Client(server.address, **{argument: right}) as client:
                assert client.infer(rows, "echo_FP32", timeout=np.float64(20)).rows == 2
    with pytest.raises(mdm.InvalidArgument, match="connect_timeout is None"):
        mdm.Client(server.address, connect_timeout=None)
    with mdm.Client(server.address) as client:
        ticket = client.submit(rows, "echo_FP32")
        for wrong in ("5", float("nan"), True):
            with pytest.raises(mdm.InvalidArgument, match="timeout is .*, expected a number of seconds"):
                ticket.result(wrong)
        slow = client.submit(np.ones((100_000, 256), "f4"), "slow")
        for over in (0, -1.5, np.float32(0)):
            with pytest.raises(mdm.DeadlineExceeded):
                slow.result(over)
        assert ticket.result(np.float32(20)).rows == 2


def test_a_datatype_that_the_model_does_not_take_comes_with_a_hint(client, needs_plugin):
    for rows, model, why in (
        ([[0.0] * 64], "digits", r"expected FP32, got JSON.*numpy\.asarray\(rows, numpy\.float32\)"),
        (np.zeros((2, 64)), "digits", r"expected FP32, got FP64.*numpy\.asarray\(rows, numpy\.float32\)"),
        (np.zeros((2, 4), "i8"), "echo_BOOL", r"got INT64.*numpy\.asarray\(rows, bool\)"),
        (np.zeros((2, 4)), "echo_BF16", "mdm.BF16"), (["a", None], "texts", "a list of str"),
    ):
        for call in (client.infer, lambda *a: client.submit(*a).result(), lambda *a: list(client.stream(*a))):
            with pytest.raises(mdm.InvalidArgument, match=why) as caught:
                call(rows, model)
            assert str(caught.value).count("in Python") == 1
    with pytest.raises(mdm.InvalidArgument) as caught:
        client.infer(np.zeros((2, 3), "f4"), "digits")
    assert "in Python" not in str(caught.value)
    assert client.infer(np.asarray([[0.0] * 64], np.float32), "digits").rows == 1


def test_pandas_columns_and_tables(client):
    pandas = needed("pandas")
    frame = pandas.DataFrame({"n": [1, 2, 3], "t": ["a", "b", "c"], "f": [0.5, 1.5, 2.5]})
    assert client.infer(frame["t"], "texts").only().tolist() == ["a", "b", "c"]
    got = client.infer(frame[["f"]], "echo_FP64").to_pandas()
    assert list(got.columns) == ["y"] and [list(v) for v in got["y"]] == [[0.5], [1.5], [2.5]]
    assert client.infer(frame["t"], "texts").to_pandas()["out"].tolist() == ["a", "b", "c"]
    with pytest.raises(mdm.InvalidArgument, match="element 1"):
        client.infer(pandas.Series(["a", None], dtype=object), "texts")
    for missing in (None, float("nan"), pandas.NA):
        for kind in ("str", "string", object):
            with pytest.raises(mdm.InvalidArgument, match="element 1 is missing"):
                client.infer(pandas.Series(["a", missing, "b"], dtype=kind), "texts")


def test_anything_with_the_array_interface_is_taken(client):
    class Tensor:
        """As torch's on the CPU."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    rows = np.arange(8, dtype="f4").reshape(2, 4)
    assert np.array_equal(client.infer(Tensor(rows), "echo_FP32")["y"], rows)
    assert np.array_equal(client.infer(memoryview(rows), "echo_FP32")["y"], rows)


def test_progress_gives_the_same_result(client):
    rows = np.random.default_rng(1).standard_normal((3000, 4)).astype("f4")
    assert np.array_equal(client.infer(rows, "echo_FP32", progress=True)["y"], rows)
    tickets = [client.submit(rows[:5], "echo_FP32") for _ in range(3)]
    assert [r.rows for r in client.fetch_all(tickets, progress=True)] == [5, 5, 5]


@pytest.mark.parametrize("library", ["rich", "tqdm"])
def test_a_bar_of_either_library_beside_another_and_left_early(client, library, monkeypatch):
    needed(library)
    if library == "tqdm":
        for name in ("rich", "rich.console", "rich.errors", "rich.progress"):
            monkeypatch.setitem(sys.modules, name, None)
    rows = np.ones((5, 4), "f4")
    submit = lambda model="echo_FP32": [client.submit(rows, model) for _ in range(3)]
    both = zip(client.fetch_all(submit(), progress=True), client.fetch_all(submit(), progress=True))
    assert [(a.rows, b.rows) for a, b in both] == [(5, 5)] * 3
    left = client.fetch_all(submit(), progress=True)
    assert next(left).rows == 5
    left.close()
    with pytest.raises(mdm.NotFound):
        list(client.fetch_all(submit("nothing"), progress=True))
    assert client.infer(rows, "echo_FP32", progress=True).rows == 5


@pytest.mark.parametrize("library", ["rich", "tqdm"])
def test_bars_go_to_stderr(server, library):
    needed(library)
    hidden = 'sys.modules.update({"rich": None, "rich.console": None, "rich.errors": None, "rich.progress": None})'
    said = python(f"""if 1:
        import sys; {hidden if library == "tqdm" else ""}
        import mdm, numpy as np
        client = mdm.Client({server.address!r})
        client.infer(np.ones((5, 4), "f4"), "echo_FP32", progress=True)
        print("mine")
    """)
    assert said == "mine\n"


def test_where_rich_shows_something_else_there_is_no_bar(client, monkeypatch):
    class LiveError(Exception):
        pass

    class Progress:
        def __init__(self, *_, **__):
            pass

        def start(self):
            raise LiveError("Only one live display may be active at once")

    columns = dict.fromkeys(("BarColumn", "MofNCompleteColumn", "TimeRemainingColumn"), lambda: None)
    monkeypatch.setitem(sys.modules, "rich", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rich.console", types.SimpleNamespace(Console=lambda stderr: None))
    monkeypatch.setitem(sys.modules, "rich.errors", types.SimpleNamespace(LiveError=LiveError))
    monkeypatch.setitem(sys.modules, "rich.progress", types.SimpleNamespace(Progress=Progress, **columns))
    assert client.infer(np.ones((5, 4), "f4"), "echo_FP32", progress=True).rows == 5


def test_polars_columns(client):
    polars = needed("polars")
    frame = polars.DataFrame({"n": [1, 2], "f": [0.5, 1.5], "t": ["a", "b"], "b": [True, False]})
    assert np.array_equal(client.infer(frame[["f", "n"]], "echo_FP64")["y"], [[0.5, 1], [1.5, 2]])
    assert np.array_equal(client.infer(frame[["n"]], "echo_INT64")["y"], [[1], [2]])
    assert np.array_equal(client.infer(frame[["b"]], "echo_BOOL")["y"], [[True], [False]])
    vectors = polars.Series([[1.0, 2.0], [3.0, 4.0]], dtype=polars.Array(polars.Float32, 2))
    assert np.array_equal(client.infer(vectors, "echo_FP32")["y"], [[1, 2], [3, 4]])
    for texts in (frame["t"], frame["t"].cast(polars.Categorical), polars.concat([frame["t"][:1], frame["t"][1:]], rechunk=False)):
        assert client.infer(texts, "texts")["out"].tolist() == ["a", "b"]
    for odd, why in (
        (polars.Series(["a", None]), "element 1 is missing"), (polars.Series([True, None]), "element 1 is missing"),
        (polars.Series([[1.0], [2.0]]), "numpy.stack"), (frame.lazy(), "LazyFrame is not taken"),
    ):
        with pytest.raises(mdm.InvalidArgument, match=why):
            client.infer(odd, "texts")


def test_the_version_is_the_crates():
    import re

    text = (ROOT / "Cargo.toml").read_text()
    assert re.search(r'^version = "(.*)"', text, re.M).group(1) == mdm.__version__


