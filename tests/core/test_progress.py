"""Tests of progress output when stderr is not a terminal."""

from genie_jax.core import progress


def test_without_a_terminal_progress_is_printed_as_lines_with_counts(capsys):
  with progress.track(total=3, unit="frames", description="reading") as bar:
    for _ in range(3):
      bar.update(1)
  err = capsys.readouterr().err
  assert "\r" not in err
  last = err.strip().splitlines()[-1]
  assert last.startswith("reading") and "3/3" in last and "frames" in last


def test_tracking_an_iterable_yields_its_items(capsys):
  assert list(progress.track(range(4), unit="clips")) == [0, 1, 2, 3]
  assert "4/4" in capsys.readouterr().err


def test_resumed_work_starts_at_the_initial_count(capsys):
  with progress.track(total=10, initial=6, unit="steps") as bar:
    bar.update(4)
  assert "10/10" in capsys.readouterr().err
