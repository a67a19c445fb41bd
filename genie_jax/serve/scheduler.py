"""Who is stepped next: at most one frame a player, then the next player.

The event loop owns sessions and lines; one thread owns the model and sees only
states. Between two ticks the loop collects what each player waits for, in
turn, and the thread steps all of it together.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from genie_jax.serve import branch, protocol
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import session as session_lib


@dataclasses.dataclass
class _Step:
  """A line's next frame, or its prompt, or a kept state.

  Attributes:
    session: Whose.
    line: Which.
    epoch: The line's when the job was made.
    action: To step; None for a prompt or a kept state.
    state: To step or to copy; None for a prompt.
    frame: The frame that the result stands at.
    copy: Whether a copy of the result shall be kept.
  """

  session: session_lib.Session
  line: branch.Line
  epoch: int
  action: int | None
  state: Any
  frame: int
  copy: bool
  picture: bytes | None = None
  kept: Any = None


@dataclasses.dataclass
class _Spread:
  """A comparison's next frame of some actions.

  Attributes:
    session: Whose.
    comparison: Which.
    source: To be copied for each action; None once that was done.
    states: One an action.
    places: The actions to step.
  """

  session: session_lib.Session
  comparison: session_lib.Comparison
  source: Any
  states: list[Any] | None
  places: range
  pictures: dict[int, bytes] = dataclasses.field(default_factory=dict)


class Scheduler:
  """Steps everybody's game, fairly."""

  def __init__(
    self,
    engine: engine_lib.Engine,
    players: Callable[[], Iterable[session_lib.Session]],
  ):
    """Makes a scheduler.

    Args:
      engine: The model.
      players: Returns all sessions.
    """
    self._engine = engine
    self._players = players
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="model"
    )
    self._wake = asyncio.Event()
    # Whoever was stepped longest ago comes first.
    self._turns: collections.OrderedDict[str, None] = collections.OrderedDict()

  def wake(self) -> None:
    """Says that somebody may have something to step."""
    self._wake.set()

  async def run(self) -> None:
    """Steps until cancelled."""
    loop = asyncio.get_running_loop()
    try:
      while True:
        await self._wake.wait()
        self._wake.clear()
        while jobs := self._collect():
          await loop.run_in_executor(self._thread, self._do, jobs)
          for job in jobs:
            self._deliver(job)
          # Messages that came meanwhile are read, frames are written.
          await asyncio.sleep(0)
    finally:
      self._thread.shutdown(wait=False, cancel_futures=True)

  def _collect(self) -> list[_Step | _Spread]:
    """Takes at most one job of every player, the longest waiting first."""
    players = {player.token: player for player in self._players()}
    for token in [token for token in self._turns if token not in players]:
      del self._turns[token]
    for token in players:
      self._turns.setdefault(token)
    jobs: list[_Step | _Spread] = []
    spread = False  # One comparison a tick: it steps as many as a crowd.
    for token in list(self._turns):
      job = self._job(players[token], spread)
      if job is not None:
        self._turns.move_to_end(token)
        spread |= isinstance(job, _Spread)
        jobs.append(job)
        if len(jobs) == self._engine.most:
          break
    return jobs

  def _job(
    self, session: session_lib.Session, spread: bool
  ) -> _Step | _Spread | None:
    if not session.ready:
      return None
    line, comparison = session.line, session.comparison
    if comparison is not None and comparison.states is None:
      source = comparison.line
      if source.state is not None and source.reached == comparison.frame:
        # Before the next action, which would take the line past the frame.
        return None if spread else self._spread(session, source.state)
    if line is not None and line.behind:
      return self._step(session, line)
    if comparison is None:
      return None
    if comparison.states is None:
      source = comparison.line
      return self._step(session, source) if source.behind else None
    return None if spread else self._spread(session, None)

  def _spread(self, session: session_lib.Session, state: Any) -> _Spread:
    comparison = session.comparison
    assert comparison is not None  # The caller has checked.
    count = self._engine.description.num_actions
    first = comparison.stepped % count
    return _Spread(
      session,
      comparison,
      state,
      comparison.states,
      range(first, min(count, first + self._engine.most)),
    )

  def _step(self, session: session_lib.Session, line: branch.Line) -> _Step:
    state, line.state, line.away = line.state, None, True
    if state is not None:
      return _Step(
        session,
        line,
        line.epoch,
        line.actions[line.reached],
        state,
        line.reached + 1,
        line.wants_copy,
      )
    kept = line.snapshot()
    if kept is not None:
      return _Step(session, line, line.epoch, None, kept[1], kept[0], False)
    return _Step(session, line, line.epoch, None, None, 0, line.wants_copy)

  def _do(self, jobs: list[_Step | _Spread]) -> None:
    """Runs in the model's thread."""
    steps = []  # (state, action, what to do with the result)
    for job in jobs:
      if isinstance(job, _Spread):
        self._fan(job, steps)
      elif job.state is None:
        origin = job.line.origin
        job.state, job.picture = self._engine.start(origin.frame, origin.seed)
      elif job.action is None:
        job.state = self._engine.fork(job.state)
      else:
        steps.append((job.state, job.action, job, None))
    results = self._engine.step(
      [step[0] for step in steps], [step[1] for step in steps]
    )
    for (_, _, job, place), (state, picture) in zip(
      steps, results, strict=True
    ):
      if place is None:
        job.state, job.picture = state, picture
      else:
        job.states[place], job.pictures[place] = state, picture
    for job in jobs:
      if isinstance(job, _Step) and job.copy:
        job.kept = self._engine.fork(job.state)

  def _fan(self, job: _Spread, steps: list[Any]) -> None:
    if job.states is None:
      count = self._engine.description.num_actions
      job.states = [self._engine.fork(job.source) for _ in range(count)]
    steps += [(job.states[place], place, job, place) for place in job.places]

  def _deliver(self, job: _Step | _Spread) -> None:
    """Gives a result to its session, unless that went elsewhere meanwhile."""
    session = job.session
    if isinstance(job, _Spread):
      comparison = job.comparison
      if session.comparison is not comparison:
        return
      assert job.states is not None  # `_fan` has made them.
      comparison.states = job.states
      count = len(job.states)
      number = comparison.stepped // count + 1
      comparison.stepped += len(job.places)
      for action, picture in job.pictures.items():
        session.send(
          protocol.pack(
            protocol.COMPARED,
            picture,
            action=action,
            run=session.run,
            frame=number,
          )
        )
      if comparison.stepped == comparison.frames * count:
        session.comparison = None
        session.send(
          {"type": "compared", "run": session.run, "frames": comparison.frames}
        )
      return
    line = job.line
    if line.epoch != job.epoch:
      return
    if job.picture is None:  # A kept state.
      line.state, line.reached, line.away = job.state, job.frame, False
    elif line.advance(job.state, job.picture, job.kept) and (
      line is session.line
    ):
      session.send_frame(line.end)
