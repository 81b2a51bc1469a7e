"""Packages that single tests need, all of which python/requirements.txt lists."""

import importlib
import os

import pytest


def needed(package):
    """The package; without it the test is skipped, or fails with REQUIRE_CLIENTS."""
    if os.environ.get("REQUIRE_CLIENTS"):
        return importlib.import_module(package)
    return pytest.importorskip(package)
