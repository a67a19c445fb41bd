"""Finds Chromium and starts it without a desktop."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright import sync_api

_FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)


def path() -> str | None:
  """Returns the program in $CHROMIUM or on the PATH, or None."""
  return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextlib.contextmanager
def launch() -> Iterator[sync_api.Browser]:
  """Starts Chromium, and closes it at the end of the context.

  Raises:
    FileNotFoundError: Chromium was not found.
  """
  found = path()
  if found is None:
    raise FileNotFoundError(
      "needs Chromium: install it, or name it in $CHROMIUM"
    )
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=found, args=[*_FLAGS])
    try:
      yield browser
    finally:
      browser.close()
