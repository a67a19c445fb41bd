"""Schedules the players' steps fairly and runs them in the model's thread.

The event loop owns sessions and lines. One thread owns the model and sees only
states. In each tick the loop collects at most one job per player, the player
who has waited longest first, and the thread runs all of these jobs together.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from genie_jax.core import images
from genie_jax.serve import branch, protocol
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import likeness as likeness_lib
from genie_jax.serve import session as session_lib


@dataclasses.dataclass
class _Step:
  """A job: draw a line's next frame, read its prompt, or copy a snapshot.

  Attributes:
    session: The session that the line belongs to.
    line: The line.
    epoch: The line's epoch when the job was created.
    action: The action to step with; None for a prompt or a snapshot.
    state: The state to step or to copy; None for a prompt.
    frame: Number of the frame that the resulting state belongs to.
    copy: Whether to also return a copy of the resulting state.
    picture: Result: the frame as PNG; None for a snapshot.
    kept: Result: the copy, if `copy`.
    likeness: Result: how well the frame shows the player's own picture, None
      for all other frames.
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
  likeness: likeness_lib.Likeness | None = None


@dataclasses.dataclass
class _Spread:
  """A job: draw a comparison's next frame for some of the actions.

  Attributes:
    session: The session that the comparison belongs to.
    comparison: The comparison.
    source: The state to copy for each action; None once that was done.
    states: One per action; None until the source was copied.
    places: The actions to step.
    pictures: Result: action -> frame as PNG.
  """

  session: session_lib.Session
  comparison: session_lib.Comparison
  source: Any
  states: list[Any] | None
  places: range
  pictures: dict[int, bytes] = dataclasses.field(default_factory=dict)


class Scheduler:
  """Steps all players' worlds in turn."""

  def __init__(
    self,
    engine: engine_lib.Engine,
    players: Callable[[], Iterable[session_lib.Session]],
  ):
    """Creates a scheduler.

    Args:
      engine: The world to step.
      players: Returns all sessions.
    """
    self._engine = engine
    self._players = players
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="model"
    )
    self._wake = asyncio.Event()
    # The player who was stepped longest ago comes first.
    self._turns: collections.OrderedDict[str, None] = collections.OrderedDict()

  def wake(self) -> None:
    """Announces that there may be something to step."""
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
          # Lets the tasks that read messages and write frames run.
          await asyncio.sleep(0)
    finally:
      self._thread.shutdown(wait=False, cancel_futures=True)

  def _collect(self) -> list[_Step | _Spread]:
    """Returns at most one job per player, the longest waiting first."""
    players = {player.token: player for player in self._players()}
    for token in [token for token in self._turns if token not in players]:
      del self._turns[token]
    for token in players:
      self._turns.setdefault(token)
    jobs: list[_Step | _Spread] = []
    spread = False  # One comparison per tick: it steps as many as a crowd.
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
        # Now, because the next action would take the line past the frame.
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
    assert comparison is not None  # Checked by the caller.
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
    """Does all jobs; runs in the model's thread."""
    world = self._engine.world
    steps = []  # (state, action, the job, its place in a comparison or None)
    for job in jobs:
      if isinstance(job, _Spread):
        if job.states is None:
          count = self._engine.description.num_actions
          job.states = [world.fork(job.source) for _ in range(count)]
        steps += [
          (job.states[place], place, job, place) for place in job.places
        ]
      elif job.state is None:
        origin = job.line.origin
        job.state = world.reset(origin.frame, seed=origin.seed)
        shown = world.show(job.state)
        job.picture = images.to_png(shown)
        if origin.prompt is None:
          job.likeness = self._engine.likeness(origin.frame, shown)
      elif job.action is None:
        job.state = world.fork(job.state)
      else:
        steps.append((job.state, job.action, job, None))
    states, frames = world.step_many(
      [step[0] for step in steps],
      [step[1] for step in steps],
      sizes=self._engine.sizes,
    )
    for (_, _, job, place), state, frame in zip(
      steps, states, frames, strict=True
    ):
      picture = images.to_png(frame)
      if place is None:
        job.state, job.picture = state, picture
      else:
        job.states[place], job.pictures[place] = state, picture
    for job in jobs:
      if isinstance(job, _Step) and job.copy:
        job.kept = world.fork(job.state)

  def _deliver(self, job: _Step | _Spread) -> None:
    """Gives a result to its session, unless the session has moved on."""
    session = job.session
    if isinstance(job, _Spread):
      comparison = job.comparison
      if session.comparison is not comparison:
        return
      assert job.states is not None  # Set by `_do`.
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
    if job.picture is None:  # A snapshot.
      line.state, line.reached, line.away = job.state, job.frame, False
    elif line.advance(job.state, job.picture, job.kept) and (
      line is session.line
    ):
      session.send_frames()
      if job.likeness is not None:
        session.set_likeness(job.likeness)
