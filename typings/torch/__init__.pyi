"""PyTorch for the type checker: everything has the type Any.

PyTorch is too large for the development environment. With these types the
checker says the same where it is installed and where it is not.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...
