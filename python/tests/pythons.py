"""The Pythons of this machine, and the wheels that the packages need on the oldest and the newest of them.

    python3 python/tests/pythons.py --download FOLDER
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Versions that the packages are for and that their dependencies have wheels for.
FIRST, LAST = 9, 14
NEEDED = ["numpy", "pyzmq>=23", "msgpack>=1.0", "onnxruntime>=1.19.2"]


def pythons():
    """The oldest and the newest Python that are there and have pip, as pairs of a version and a program."""
    found = []
    for minor in range(FIRST, LAST + 1):
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        candidates = [shutil.which(f"python3.{minor}"), *sorted(pyenv.glob(f"3.{minor}.*/bin/python3.{minor}"))]
        if sys.version_info[:2] == (3, minor):
            candidates.append(sys.executable)
        for program in filter(None, candidates):
            # A shim of pyenv's may be there without its Python.
            asked = subprocess.run([program, "-c", "import sys, venv, ensurepip; print(sys.executable)"], capture_output=True, text=True)
            if asked.returncode == 0 and asked.stdout.strip():
                found.append((f"3.{minor}", asked.stdout.strip()))
                break
    return found[:1] + found[1:][-1:]


def download(folder):
    for version, program in pythons():
        command = [
            sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary", ":all:", "--python-version",
            version, "--dest", folder, *NEEDED,
        ]
        print(" ".join(command[1:]), flush=True)
        if subprocess.run(command).returncode != 0:
            sys.exit(f"error: the wheels for Python {version} could not be fetched")


if __name__ == "__main__":
    download(sys.argv[sys.argv.index("--download") + 1])
