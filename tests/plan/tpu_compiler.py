"""Whether the TPU compiler is here."""

import importlib.util
import os
import sys

import pytest

_BESIDE = os.path.join(sys.prefix, "libtpu", "libtpu", "libtpu.so")
HERE = importlib.util.find_spec("libtpu") is not None or os.path.isfile(
  os.environ.get("TPU_LIBRARY_PATH", _BESIDE)
)

needed = pytest.mark.skipif(
  not HERE, reason="no libtpu: see docs/plan.md on how to install it"
)
