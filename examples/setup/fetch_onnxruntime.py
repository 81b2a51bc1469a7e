#!/usr/bin/env python3
"""Fetches the pinned ONNX Runtime library into the project.

    python3 examples/setup/fetch_onnxruntime.py [--device cpu|cuda] [--dest DIR] [--wheel FILE]

The library is taken out of the PyPI wheel `onnxruntime` (`onnxruntime-gpu` for CUDA). pip does the download, so a
mirror or a proxy that pip is set to is used here too; the wheel is checked against the hashes below and nothing is
installed. Without `--device`, a library that is already there is kept, whichever device it is for.

What comes out, in DIR (default: `.onnxruntime/` in the project):

    libonnxruntime.so.1.31.1            the library (on macOS libonnxruntime.1.31.1.dylib)
    libonnxruntime_providers_*.so       with --device cuda only
    LICENSE, ThirdPartyNotices.txt      of ONNX Runtime
    SHA256SUMS                          of all these; its first line names the wheel. Written last.

Files arrive by rename, each one complete, so a program that looks for the library meanwhile never reads half of it.
Needs Python 3.8 or later with pip, and no other package.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.31.1"

# Package, wheel platform and the wheel's sha256 for each CPython version it was built for, by device and machine.
# On Linux the library inside is the same, byte for byte, in the wheels for every Python version.
# To move to another version: change VERSION, fetch the wheels with `pip download`, and run sha256sum on them.
WHEELS = {
    ("cpu", "linux-x86_64"): ("onnxruntime", "manylinux_2_28_x86_64", {
        "3.11": "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
        "3.12": "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
        "3.13": "74a6a52994616c4d18b33db1e13c226333a70a6ba07480a5cab9c2a50dff1430",
        "3.14": "c20d7f15d84427db070b163f78c2c7146cc93edd6113fa7327671259a24184fe",
    }),
    ("cpu", "linux-aarch64"): ("onnxruntime", "manylinux_2_28_aarch64", {
        "3.11": "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
        "3.12": "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
        "3.13": "dcaedc50333876f3829ab966b242147f0e548229e29c36fe44622ecf748c25ee",
        "3.14": "c878686b75cade1ed59131aa018ab004b1e64368b0d54041912450b9642cf04f",
    }),
    ("cpu", "macos-arm64"): ("onnxruntime", "macosx_14_0_arm64", {
        "3.11": "60b6b69bfe580eab576cacc5d132a0e9cf2a37fcfd18d46dd191042b1d1ed0d7",
        "3.12": "96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c",
        "3.13": "e4ad067d36e2220218e085d7223283b2ee1bc73d887e811fd14d21cf901a11ee",
        "3.14": "8536ac43682caa7492c46d6cfd4c3c8db288dcf0619508431a22170b670ee1d0",
    }),
    ("cuda", "linux-x86_64"): ("onnxruntime-gpu", "manylinux_2_28_x86_64", {
        "3.11": "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
        "3.12": "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
        "3.13": "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be",
        "3.14": "52a9ec263f331678e8fcb4f71a6fa44e5f901f0aac0b61fbe5a61517f2b4cc7d",
    }),
}
# The wheel to ask for where the Python that runs this has none of its own. We only unpack it, so any will do.
FALLBACK_PYTHON = "3.12"

NOTICES = ["onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"]
MEMBERS = {
    ("cpu", "linux"): ["onnxruntime/capi/libonnxruntime.so." + VERSION],
    ("cpu", "macos"): ["onnxruntime/capi/libonnxruntime." + VERSION + ".dylib"],
    ("cuda", "linux"): [
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so",
        "onnxruntime/capi/libonnxruntime.so." + VERSION,
    ],
}
SUMS = "SHA256SUMS"


class Stop(Exception):
    """Ends the script with a message that says what to do."""


def main():
    project = Path(__file__).resolve().parent.parent.parent
    parser = argparse.ArgumentParser(description="Fetch the pinned ONNX Runtime library (" + VERSION + ").")
    parser.add_argument("--device", choices=["cpu", "cuda"],
                        help="which build to fetch (default: keep what is there, else cpu)")
    parser.add_argument("--dest", type=Path, default=project / ".onnxruntime", metavar="DIR",
                        help="where it goes (default: .onnxruntime in the project)")
    parser.add_argument("--wheel", type=Path, metavar="FILE",
                        help="take this wheel, fetched elsewhere, instead of downloading one; it is checked all the same")
    args = parser.parse_args()

    try:
        there = installed_device(args.dest)
        if there and args.device in (None, there):
            print("ONNX Runtime %s (%s) is already in %s" % (VERSION, there, shown(args.dest)))
            return 0
        fetch(args.device or "cpu", args.dest, args.wheel)
    except Stop as stop:
        print("error: %s" % stop, file=sys.stderr)
        return 1
    except OSError as error:
        print("error: cannot write ONNX Runtime to %s: %s" % (shown(args.dest), error), file=sys.stderr)
        return 1
    return 0


def fetch(device, dest, wheel):
    machine = this_machine()
    if machine.startswith("linux-"):
        check_glibc()
    if (device, machine) not in WHEELS:
        known = ", ".join(sorted("%s (%s)" % (m, d) for d, m in WHEELS))
        raise Stop("no ONNX Runtime %s for %s (%s) is pinned here; there is: %s. A library that you "
                   "have from elsewhere can be named with --onnxruntime PATH or ORT_DYLIB_PATH" % (VERSION, machine, device, known))

    dest.mkdir(parents=True, exist_ok=True)
    # Inside the destination: on the same file system, so that a rename is enough, and ignored by git.
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=str(dest)) as scratch:
        scratch = Path(scratch)
        if wheel is None:
            wheel = download(device, machine, scratch)
        elif not wheel.is_file():
            raise Stop("no such file: %s" % wheel)
        check(wheel, device, machine)
        unpack(wheel, device, machine, scratch, dest)

    print("ONNX Runtime %s (%s) is now in %s" % (VERSION, device, shown(dest)))
    if device == "cuda":
        print("It needs the NVIDIA driver, CUDA 13 (cuBLAS, cuFFT, cuRAND, cudart) and cuDNN 9 where the system's loader finds them.")


def this_machine():
    """The machine as WHEELS names it, whether it is there or not."""
    system = {"Linux": "linux", "Darwin": "macos"}.get(platform.system(), platform.system().lower())
    return "%s-%s" % (system, platform.machine().lower())


def check_glibc():
    """The Linux wheels are built against glibc 2.28; on an older one, or on musl, the library would not load."""
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        found = ""
    if not found.startswith("glibc "):
        raise Stop("the ONNX Runtime wheels need glibc 2.28 or later, and this system's C library is not glibc")
    major, minor = (int(part) for part in found.split()[1].split(".")[:2])
    if (major, minor) < (2, 28):
        raise Stop("the ONNX Runtime wheels need glibc 2.28 or later; this system has %s" % found)


def download(device, machine, scratch):
    """Lets pip fetch the wheel into `scratch`, and returns its path."""
    package, tag, hashes = WHEELS[device, machine]
    own = "%d.%d" % sys.version_info[:2]
    python = own if own in hashes else FALLBACK_PYTHON
    if subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise Stop("this Python (%s) has no pip; mend it with: %s" % (sys.executable, pip_remedy()))

    folder = scratch / "wheel"
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, "--abi", "cp" + python.replace(".", ""), "--platform", tag,
        "--dest", str(folder), "%s==%s" % (package, VERSION),
    ]
    print("fetching ONNX Runtime %s (%s, %s) with pip" % (VERSION, device, machine), flush=True)
    # A user whose pip only installs into virtual environments may still download.
    environment = dict(os.environ, PIP_REQUIRE_VIRTUALENV="0")
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode:
        cp = "cp" + python.replace(".", "")
        name = "-".join([package.replace("-", "_"), VERSION, cp, cp, tag]) + ".whl"
        raise Stop("pip could not download %s==%s (its own words are above). Without a way to a package index, fetch %s elsewhere "
                   "and give it with --wheel FILE" % (package, VERSION, name))
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Stop("pip left %d wheels, expected one: %s" % (len(wheels), [wheel.name for wheel in wheels]))
    return wheels[0]


def pip_remedy():
    sudo = "" if os.geteuid() == 0 else "sudo "
    # Debian takes ensurepip out of its own Python, and only of that one.
    if sys.executable.startswith("/usr/bin/") and shutil.which("apt-get"):
        return sudo + "apt-get install -y python3-pip"
    if sys.executable.startswith("/usr/bin/") and shutil.which("dnf"):
        return sudo + "dnf install -y python3-pip"
    return sys.executable + " -m ensurepip --upgrade"


def check(wheel, device, machine):
    """The wheel must be one of those pinned for this device and machine."""
    found = sha256_of(wheel)
    if found not in WHEELS[device, machine][2].values():
        raise Stop("%s has sha256 %s, which is none of those pinned for ONNX Runtime %s (%s, %s) in %s. Nothing was unpacked: the "
                   "file is damaged, is another version or another machine's, or the package index serves something else"
                   % (wheel.name, found, VERSION, device, machine, Path(__file__).name))


def unpack(wheel, device, machine, scratch, dest):
    """Puts the files that we want from `wheel` into `dest`, one rename each, the library last but for SHA256SUMS."""
    members = NOTICES + MEMBERS[device, machine.split("-")[0]]
    sums = ["# %s %s %s, out of %s" % (VERSION, device, machine, wheel.name)]
    ready = []
    with zipfile.ZipFile(str(wheel)) as archive:
        for member in members:
            target = scratch / Path(member).name
            with archive.open(member) as source, open(str(target), "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            ready.append(target)
            sums.append("%s  %s" % (sha256_of(target), target.name))
    listing = scratch / SUMS
    listing.write_text("\n".join(sums) + "\n", encoding="ascii")

    wanted = {path.name for path in ready}
    for old in dest.glob("libonnxruntime*"):
        if old.name not in wanted:
            old.unlink()
    for path in ready + [listing]:
        os.replace(str(path), str(dest / path.name))


def installed_device(dest):
    """The device whose library is in `dest`: complete, of the pinned version and for this machine; else None."""
    try:
        head, *lines = (dest / SUMS).read_text(encoding="ascii").splitlines()
        mark, version, device, machine = head.split(",")[0].split()
        for line in lines:
            expected, name = line.split(None, 1)
            if sha256_of(dest / name) != expected:
                return None
    except (OSError, ValueError):
        return None
    return device if (mark, version, machine) == ("#", VERSION, this_machine()) else None


def sha256_of(path):
    digest = hashlib.sha256()
    with open(str(path), "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def shown(path):
    """`path` as a person in the working directory would write it."""
    relative = os.path.relpath(str(path))
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    sys.exit(main())
