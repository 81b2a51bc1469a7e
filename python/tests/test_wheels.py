"""The wheels that `make wheel` leaves in dist/: installed into fresh environments, by pip and by uv, and used by absolute path."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pythons import pythons

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WHEELS = TARGET / "python-wheels"
COMMANDS = ["mdm-server-start", "mdm-server-status", "mdm-server-terminate", "mdm-infer", "mdm-model", "mdm-bench"]
VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)

# Uses the server by the command's absolute path, from a folder that says nothing of the engine.
PROGRAM = """if 1:
    import subprocess, sys, os
    import mdm, numpy as np
    bin, images, labels, models = sys.argv[1:]
    server = subprocess.Popen([os.path.join(bin, "mdm-server-start"), "--port", "0", "--port-out", "0", "--run-script-dir", models],
                              stdout=subprocess.PIPE, text=True)
    try:
        ready = server.stdout.readline()
        assert ready.startswith("ready "), ready
        port = dict(word.split("=") for word in ready.split()[1:])["port"]
        with mdm.Client("localhost:" + port, timeout=30) as client:
            got = client.infer(np.load(images), model="digits")
            right = int((got["label"] == np.load(labels)).sum())
            print("right", right)
            print("stopped", client.terminate())
        server.wait(20)
    finally:
        server.kill()
"""


def needs(condition, what):
    if not condition:
        if os.environ.get("REQUIRE_CLIENTS"):
            pytest.fail(what)
        pytest.skip(what)


@pytest.fixture
def dist():
    wheels = sorted((ROOT / "dist").glob("mdm_*.whl"))
    needs(len(wheels) == 2, "dist/ does not hold the two wheels: run `make wheel`")
    return ROOT / "dist"


def clean_environment(folder):
    """Nothing that tells of another environment, or of an engine."""
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TMPDIR", "SYSTEMROOT")}
    return {**kept, "HOME": str(folder)}


def run(command, folder, seconds=120):
    done = subprocess.run([str(word) for word in command], cwd=folder, env=clean_environment(folder), capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_a_fresh_environment_classifies_digits_without_activation(dist, tmp_path, installer, which):
    found = pythons()
    needs(found, "no Python with venv and ensurepip is there")
    needs(WHEELS.is_dir(), "the wheels that are installed with them are not there: run `make python-tools`")
    if which == -1 and len(found) == 1:
        pytest.skip("the machine has one Python")
    version, python = found[which]
    links = ["--no-index", "--find-links", dist, "--find-links", WHEELS, "mdm-serving"]
    if installer == "pip":
        run([python, "-m", "venv", tmp_path / "env"], tmp_path)
        run([tmp_path / "env/bin/python", "-m", "pip", "install", "-q", *links], tmp_path)
    else:
        uv = TARGET / "python-tools/bin/uv"
        uv = uv if uv.exists() else shutil.which("uv")
        needs(uv, "uv is not there: run `make python-tools`")
        run([uv, "venv", "-q", "--no-config", "--offline", "--python", python, tmp_path / "env"], tmp_path)
        run([uv, "pip", "install", "-q", "--offline", "--no-config", "--python", tmp_path / "env/bin/python", *links], tmp_path)
    bin = tmp_path / "env/bin"
    for command in COMMANDS:
        assert run([bin / command, "--version"], tmp_path).strip() == f"{command} {VERSION}"
    digits = ROOT / "examples/digits"
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(digits / "digits.onnx", models)
    # Through a link in a folder elsewhere, as pipx makes them.
    (tmp_path / "links").mkdir()
    for command in COMMANDS:
        (tmp_path / "links" / command).symlink_to(bin / command)
    for folder in (bin, tmp_path / "links"):
        said = run([bin / "python", "-c", PROGRAM, folder, digits / "images.npy", digits / "labels.npy", models], tmp_path)
        assert said.split() == ["right", "1774", "stopped", "True"]
    facts = run([bin / "python", "-m", "mdm"], tmp_path)
    assert VERSION in facts and str(bin / "mdm-server-start") in facts and "onnxruntime" in facts


def test_both_wheels_have_the_crates_version_and_are_small(dist):
    wheels = {path.name.split("-")[0]: path for path in dist.glob("mdm_*.whl")}
    assert set(wheels) == {"mdm_client", "mdm_serving"}
    for path in wheels.values():
        # 16 MB is the bound of what is released, which `make bench-python` looks at; this one may be without optimisation.
        assert path.name.split("-")[1] == VERSION and path.stat().st_size <= 24e6
    with zipfile.ZipFile(wheels["mdm_client"]) as client:
        assert "mdm/py.typed" in client.namelist() and wheels["mdm_client"].name.endswith("py3-none-any.whl")
    with zipfile.ZipFile(wheels["mdm_serving"]) as serving:
        scripts = {name.rsplit("/", 1)[1] for name in serving.namelist() if ".data/scripts/" in name}
        assert scripts == set(COMMANDS)
        metadata = serving.read(next(name for name in serving.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    assert f"Requires-Dist: mdm-client=={VERSION}" in metadata and "Requires-Dist: onnxruntime>=1.19.2" in metadata


def test_the_wheels_are_of_these_sources_and_anybody_can_read_them(dist):
    for path in dist.glob("mdm_*.whl"):
        assert path.stat().st_mode & 0o444 == 0o444, f"{path.name}: only its owner can install it"
    sources = ROOT / "python/mdm-client/src/mdm"
    written = {f"mdm/{path.relative_to(sources).as_posix()}": path.read_bytes() for path in sources.rglob("*.py")}
    (wheel,) = dist.glob("mdm_client-*.whl")
    with zipfile.ZipFile(wheel) as client:
        held = {name: client.read(name) for name in client.namelist() if name.endswith(".py")}
    differing = sorted(name for name in written.keys() | held.keys() if written.get(name) != held.get(name))
    assert not differing, f"{wheel.name} is older than its sources ({', '.join(differing)}): run `make wheel`"


def test_the_bench_tells_the_size_of_each_command(tmp_path):
    needs(all(importlib.util.find_spec(name) for name in ("numpy", "zmq", "msgpack")), "the client's packages are not there")
    found = importlib.util.spec_from_file_location("bench_of_python", ROOT / "benches/python.py")
    bench = importlib.util.module_from_spec(found)
    found.loader.exec_module(bench)
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a-1.data/scripts/mdm-infer", bytes(3_000_000))
        wheel.writestr("a-1.dist-info/METADATA", "")
    (line,) = bench.command_sizes(tmp_path / "a.whl")
    assert line.split() == ["mdm-infer", "0.0", "MB", "3.0", "MB", "installed"]


def test_there_is_one_version():
    client = (ROOT / "python/mdm-client/src/mdm/__init__.py").read_text()
    assert re.search(r'^__version__ = "(.*)"', client, re.M).group(1) == VERSION
    assert f'"mdm-client=={VERSION}"' in (ROOT / "python/mdm-serving/pyproject.toml").read_text()


def test_the_sdist_of_the_client_builds(tmp_path):
    needs(importlib.util.find_spec("flit_core"), "flit_core is not there: run `make python-tools`")
    from flit_core import buildapi

    here = os.getcwd()
    os.chdir(ROOT / "python/mdm-client")
    try:
        name = buildapi.build_sdist(str(tmp_path))
    finally:
        os.chdir(here)
    with tarfile.open(tmp_path / name) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path)
    assert any(name.endswith("src/mdm/py.typed") for name in names) and any(name.endswith("/LICENSE") for name in names)
    done = subprocess.run(
        [sys.executable, "-m", "flit_core.wheel", "--outdir", tmp_path], cwd=tmp_path / name[: -len(".tar.gz")], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("mdm_client-*.whl"))


def test_the_sdist_of_the_server_holds_what_it_is_built_from(tmp_path):
    maturin = TARGET / "python-tools/bin/maturin"
    needs(maturin.exists() and shutil.which("cargo"), "maturin is not there: run `make python-tools`")
    done = subprocess.run(
        [maturin, "sdist", "--out", tmp_path], cwd=ROOT / "python/mdm-serving", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("mdm_serving-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path)
    root = tmp_path / archive.name[: -len(".tar.gz")]
    assert (root / "pyproject.toml").exists() and (root / "PKG-INFO").exists()
    manifests = [path for path in root.rglob("Cargo.toml") if re.search(r'^name = "mdm"', path.read_text(), re.M)]
    assert len(manifests) == 1 and (manifests[0].parent / "src/bin/mdm-server-start/main.rs").exists()
    # The manifest and its lock agree, and name files that are there.
    metadata = subprocess.run(
        ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1", "--manifest-path", manifests[0]],
        capture_output=True, text=True, timeout=100,
    )
    assert metadata.returncode == 0, metadata.stderr
