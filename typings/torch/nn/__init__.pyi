"""`torch.nn` for the type checker; see the package above."""

from typing import Any

def __getattr__(name: str) -> Any: ...
