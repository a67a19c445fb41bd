"""All sessions: who may come in, who has to go."""

import secrets
from collections.abc import Iterator

from genie_jax.serve import branch, connection
from genie_jax.serve import session as session_lib

_AWAY_SECONDS = 120.0  # A lost player's game is kept this long.


class Full(ValueError):
  """There is no room for another player."""


class Hub:
  """All sessions of a server."""

  def __init__(
    self,
    num_actions: int,
    limits: branch.Limits,
    *,
    most: int,
    idle_seconds: float,
  ):
    """Makes an empty hub.

    Args:
      num_actions: Buttons.
      limits: How much of each line is kept.
      most: Sessions at once.
      idle_seconds: A session without a message for so long ends.
    """
    self.most = most
    self.idle_seconds = idle_seconds
    self._num_actions = num_actions
    self._limits = limits
    self._sessions: dict[str, session_lib.Session] = {}

  def __len__(self) -> int:
    return len(self._sessions)

  def __iter__(self) -> Iterator[session_lib.Session]:
    return iter(list(self._sessions.values()))

  def enter(self, token: str, now: float) -> tuple[session_lib.Session, bool]:
    """Finds the session of a token, or opens a new one.

    Args:
      token: Of an earlier session, or empty.
      now: Time in seconds.

    Returns:
      The session, and whether it is an earlier one.

    Raises:
      Full: There is no room.
    """
    self.expire(now)
    session = self.find(token)
    if session is not None:
      return session, True
    if len(self._sessions) >= self.most:
      away = [each for each in self if each.connection is None]
      if not away:
        raise Full(
          f"All {self.most} places are taken; try again in a few minutes."
        )
      self.remove(min(away, key=lambda each: each.left))
    session = session_lib.Session(self._num_actions, self._limits, now)
    self._sessions[session.token] = session
    return session, False

  def find(self, token: str) -> session_lib.Session | None:
    """Returns the session of a token, None if there is none."""
    # JSON may hold half a character, which plain UTF-8 cannot.
    given = token.encode(errors="surrogatepass")
    for known, session in self._sessions.items():
      if secrets.compare_digest(known.encode(), given):
        return session
    return None

  def remove(self, session: session_lib.Session) -> None:
    """Forgets a session."""
    self._sessions.pop(session.token, None)

  def expire(self, now: float) -> None:
    """Forgets sessions that nobody plays, and tells those who are there."""
    gone = [
      each
      for each in self
      if now - each.seen > self.idle_seconds
      or (each.connection is None and now - each.left > _AWAY_SECONDS)
    ]
    for session in gone:
      self.remove(session)
      # Here and nowhere else: whoever left the hub and was not told would
      # wait for frames that never come.
      if session.connection is not None:
        session.connection.close(
          connection.EXPIRED, "Nothing was played for too long."
        )
