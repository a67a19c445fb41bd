"""A mark to skip tests if the TPU compiler is not installed."""

import importlib.util
import os
import sys

import pytest

_DEFAULT = os.path.join(sys.prefix, "libtpu", "libtpu", "libtpu.so")
_INSTALLED = importlib.util.find_spec("libtpu") is not None or os.path.isfile(
  os.environ.get("TPU_LIBRARY_PATH", _DEFAULT)
)

required = pytest.mark.skipif(
  not _INSTALLED, reason="libtpu is not installed; see docs/plan.md"
)
