"""Whether the TPU compiler is here."""

import importlib.util
import os

import pytest

HERE = (importlib.util.find_spec("libtpu") is not None
        or os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")))

needed = pytest.mark.skipif(
    not HERE, reason="no libtpu: pip install 'genie_jax[plan]', or set "
    "TPU_LIBRARY_PATH")
