"""Programs that were written for messageDisMiddle run with their import line changed."""

import threading

import mdm
import numpy as np
import pytest
from mdm.ancestor import ConcurrentMessageClient, MessageClient

TEXTS = {"model_proxy_path": "texts.onnx"}


def opened(server, **settings):
    return MessageClient(ip="127.0.0.1", port=server.port, port_out=server.port_out, **settings)


def test_its_client_has_its_call(server, needs_plugin):
    with opened(server, timeout=5000, show_server_config=False) as client:
        rows = client.message_handle(["生于1980年", "b"], {"model_proxy_path": "shout.proxy", "c_tag": "BD", "is_independent": False})
        assert [row["text"] for row in rows] == ["生于1980年", "b"] and rows.dtype == object and rows.shape == (2,)
        # Rows that are lists of equally many parts make no table.
        assert client.message_handle([["a", "b"], ["c", "d"]], {"model_proxy_path": "echo.proxy"}, is_tokenized=True).shape == (2,)


def test_the_lines_of_its_programs_run(server, capsys):
    with opened(server, show_server_config=False, check_version=False, check_length=False, timeout=-1) as client:
        print("client:", client.status)
        assert client.status["port"] == server.port and client.status["num_request"] == 0 and client.status["server_ip"] == "127.0.0.1"
        state = client.server_status
        print("server:", state)
        assert type(state) is dict and state["workers"] and state["server_version"] == client.status["client_version"]
        for times in (1, 20):
            found = client.message_handle(["生于1980年", "b"] * times, {**TEXTS, "c_tag": "BD", "is_independent": False})
            assert found.tolist() == ["生于1980年", "b"] * times
        assert client.status["num_request"] == 2


def test_its_arguments_have_their_places(server, capsys):
    client = MessageClient("127.0.0.1", server.port, server.port_out, "list", True, b"me", False, False, 5000)
    with client:
        assert "workers" in capsys.readouterr().out
        assert client.message_handle(["a"], TEXTS) == ["a"]
        assert client.message_handle(np.ones((2, 3), "f4"), {"model_proxy_path": "echo_FP32.onnx"}) == [[1.0] * 3] * 2
        assert client.message_handle([], TEXTS) == []
        assert client.status["identity"] == b"me" and client.status["timeout"] == 5000
    with pytest.raises(mdm.InvalidArgument, match="output_fmt is 'table'"):
        MessageClient(output_fmt="table")


def test_numbers_come_as_arrays_and_several_outputs_as_dicts(server):
    with opened(server) as client:
        numbers = client.message_handle(np.ones((2, 3), "f4"), {"model_proxy_path": "echo_FP32.onnx"})
        numbers[0] = 2
        assert numbers.dtype == np.float32 and numbers.tolist() == [[2.0] * 3, [1.0] * 3]
        both = client.message_handle({"ids": np.arange(6).reshape(2, 3), "text": ["x", "y"]}, {"model_proxy_path": "two.onnx"})
        assert both.tolist() == [{"a": [0, 1, 2], "b": "x"}, {"a": [3, 4, 5], "b": "y"}]
        assert client.message_handle([], TEXTS).tolist() == []


def test_what_it_answered_with_empty_strings_is_an_error(server):
    with opened(server) as client:
        with pytest.raises(mdm.NotFound):
            client.message_handle(["a"], {"model_proxy_path": "nothing.proxy"})
        with pytest.raises(mdm.InvalidArgument, match="model_proxy_path"):
            client.message_handle(["a"], {})


@pytest.mark.parametrize("form", ["ndarray", "list"])
def test_what_is_not_waited_for_is_fetched(server, form):
    with opened(server, output_fmt=form) as client:
        assert client.fetch_all() is None and list(client.fetch()) == []
        sent = [["a"], ["b", "c"], ["d"]]
        for rows in sent:
            assert client.message_handle(rows, TEXTS, blocking=False) is None
        assert client.status["num_pending_request"] == 3 and client.status["pending_request"] == {0, 1, 2}
        assert [list(rows) for rows in client.fetch_all()] == sent
        for rows in sent:
            client.message_handle(rows, TEXTS, blocking=False)
        assert {response.id: list(response.content) for response in client.fetch(delay=0.01)} == dict(zip((3, 4, 5), sent))
        for rows in sent:
            client.message_handle(rows, TEXTS, False)
        together = client.fetch_all(concat=True)
        assert list(together) == ["a", "b", "c", "d"] and type(together) is (list if form == "list" else np.ndarray)
        assert client.status["num_pending_request"] == 0


def test_a_fast_request_is_fetched_before_a_slow_one(server):
    with opened(server) as client:
        client.message_handle(np.ones((20_000, 256), "f4"), {"model_proxy_path": "slow.onnx"}, blocking=False)
        client.message_handle(["a"], TEXTS, blocking=False)
        assert next(client.fetch()).id == 1
        # The error of one leaves the others.
        client.message_handle(["a"], {"model_proxy_path": "nothing.proxy"}, blocking=False)
        with pytest.raises(mdm.NotFound):
            client.fetch_all()
        assert [response.id for response in client.fetch()] == [0]


def test_batches_of_a_generator_are_sent_several_at_a_time(server):
    with opened(server) as client:
        batches = ([str(n)] * n for n in range(1, 100))
        found = dict(client.message_handle_async(batches, max_num_batch=40, delay=0, para_dict=TEXTS))
        assert {id: list(rows) for id, rows in found.items()} == {n - 1: [str(n)] * n for n in range(1, 41)}
        with pytest.raises(mdm.InvalidArgument, match="model_proxy_path"):
            client.message_handle_async(iter([["a"]]))


def test_its_client_for_threads_is_for_any_number_of_them(server):
    with ConcurrentMessageClient(max_concurrency=2, port=server.port, output_fmt="list") as client:
        found = []
        threads = [threading.Thread(target=lambda: found.append(client.message_handle(["a", "b"], TEXTS))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == [["a", "b"]] * 8 and client.status["num_request"] == 8 and client.server_status["workers"]
