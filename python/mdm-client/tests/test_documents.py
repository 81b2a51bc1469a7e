"""What the README, the guide and the notebook show runs, against a real server."""

import ast
import json
import re

import numpy as np
import pytest
from servers import ROOT

PAGES = ["README.md", "src/guide/python.md", "python/mdm-client/README.md"]


def given():
    """The names that snippets take for granted."""
    images = np.load(ROOT / "examples/digits/images.npy")
    return {"images": images, "batches": [images[:100], images[100:250], images[250:]]}


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run(server, page, capsys):
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert snippets
    names = given()
    for snippet in snippets:
        exec(compile(snippet.replace("localhost:5555", server.address), page, "exec"), names)
    names["client"].close()
    assert len(names["labels"]) == 1797


def test_the_notebook_runs(server, monkeypatch, capsys):
    path = ROOT / "examples/python/digits.ipynb"
    monkeypatch.chdir(path.parent)
    names, shown = {}, []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]).replace("localhost:5555", server.address))
        # As a notebook does, the value of a last expression is shown.
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else value)
    names["client"].close()
    assert "<table>" in shown[0] and "probability" in shown[1]
    assert shown[2].startswith("1774 of 1797 are right")
    assert sum(shown[3]) == 1797 == shown[4] and "digits" in shown[5]
    assert "INVALID_ARGUMENT" in capsys.readouterr().out
