"""Opens, finds, removes and expires the sessions of a server."""

import secrets
from collections.abc import Iterator

from genie_jax.serve import branch, connection
from genie_jax.serve import session as session_lib

_AWAY_SECONDS = 120.0  # How long a disconnected player's game is kept.


class Full(ValueError):
  """The maximum number of players is reached."""


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
    """Creates an empty hub.

    Args:
      num_actions: Number of actions of the world.
      limits: How much of each line is kept.
      most: Maximum number of sessions.
      idle_seconds: Sessions that get no message for this long end.
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

  def enter(
    self, token: str, now: float, local: bool = False
  ) -> tuple[session_lib.Session, bool]:
    """Finds the session of a token, or opens a new one.

    Args:
      token: Token of an earlier session, or empty.
      now: Time in seconds.
      local: Whether the player is on this machine. Such a player takes the
        place of another machine's player, the one idle longest, if need be.

    Returns:
      The session, and whether it existed before.

    Raises:
      Full: There are `most` sessions, and none can be removed.
    """
    self.expire(now)
    session = self.find(token)
    if session is not None:
      return session, True
    if len(self._sessions) >= self.most:
      away = [each for each in self if each.connection is None]
      strangers = [each for each in self if local and not each.local]
      if away:
        self.remove(min(away, key=lambda each: each.left))
      elif strangers:
        idle = min(strangers, key=lambda each: each.seen)
        self.remove(idle)
        idle.connection.close(
          connection.FULL, "The server's owner needed this place."
        )
      else:
        raise Full(
          f"All {self.most} places are taken; try again in a few minutes."
        )
    session = session_lib.Session(self._num_actions, self._limits, now)
    session.local = local
    self._sessions[session.token] = session
    return session, False

  def find(self, token: str) -> session_lib.Session | None:
    """Returns the session of a token, None if there is none."""
    # JSON may contain a lone surrogate, which strict UTF-8 cannot encode.
    given = token.encode(errors="surrogatepass")
    for known, session in self._sessions.items():
      if secrets.compare_digest(known.encode(), given):
        return session
    return None

  def remove(self, session: session_lib.Session) -> None:
    """Removes a session."""
    self._sessions.pop(session.token, None)

  def expire(self, now: float) -> None:
    """Removes idle and abandoned sessions, and closes their connections."""
    gone = [
      each
      for each in self
      if now - each.seen > self.idle_seconds
      or (each.connection is None and now - each.left > _AWAY_SECONDS)
    ]
    for session in gone:
      self.remove(session)
      # A player whose session is removed must be disconnected, as no more
      # frames will arrive.
      if session.connection is not None:
        session.connection.close(
          connection.EXPIRED, "The session was idle for too long."
        )
