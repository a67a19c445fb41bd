import dataclasses
import html
import html.parser
import json
import re

import grey_game
import numpy as np
import pytest
from PIL import Image

from genie_jax.core import errors
from genie_jax.evals import curves, questions, report, run, verdicts

ORIGIN = report.Origin(
  name="Grey <block>",
  command="genie eval --world w",
  commit="c" * 40,
  date="2026-01-01T00:00:00+00:00",
  fps=10,
  seconds_by_stage={"tokenizer": 61.0},
)


def write_workdir(folder):
  folder.mkdir()
  lines = [{"step": s, "time": 1.0, "loss": 10 / s} for s in range(1, 300)]
  lines += [
    {"step": s, "eval/squared_error": 0.01, "eval/copy_squared_error": 0.02}
    for s in (100, 200)
  ]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  (folder / "config.json").write_text('{"stage": "lam"}')
  return folder


@pytest.fixture(scope="module")
def written(clips, tmp_path_factory):
  out = tmp_path_factory.mktemp("report")
  results = run.evaluate(
    grey_game.world(True),
    clips,
    grey_game.OPTIONS,
    true_actions=grey_game.true_world(),
  )
  training = report.read_curves([write_workdir(out / "lam")])
  return out, report.write(out, results, ORIGIN, training)


def test_metrics_have_every_key(written):
  out, metrics = written
  stored = json.loads((out / "metrics.json").read_text())
  assert stored == json.loads(json.dumps(metrics))
  for key in report.KEYS:
    assert stored[key] is not None, key
  assert stored["seconds_by_stage"]["tokenizer"] == 61.0
  assert stored["seconds_total"] == pytest.approx(
    sum(stored["seconds_by_stage"].values()), abs=0.01
  )


class _Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.seen, self.open = [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_describes_its_images(written):
  out, _ = written
  text = (out / "report.html").read_text()
  assert not re.search(r"https?://|//cdn|@import", text)
  page = _Page()
  page.feed(text)
  for tag, attributes in page.seen:
    assert tag not in ("script", "link", "iframe")
    for name in ("src", "srcset", "href"):
      value = attributes.get(name) or "data:"
      assert value.startswith(("data:", "#")), (tag, name, value[:40])
    if tag == "img":
      assert attributes["alt"]
    if tag == "svg":
      assert attributes["aria-label"]
  assert sum(tag == "img" for tag, _ in page.seen) > 10
  assert sum(tag == "svg" for tag, _ in page.seen) == 6


def test_the_page_states_figures_protocol_and_origin(written):
  out, metrics = written
  text = (out / "report.html").read_text()
  assert "Grey &lt;block&gt;" in text
  assert f"{metrics['tokenizer_psnr']:.2f} dB" in text
  assert f"{metrics['delta_psnr']:+.2f} dB" in text
  for fact in (
    metrics["commit"],
    metrics["data_fingerprint"],
    "fourth frame drawn",
    "true actions, another world",
    "A short check, not a measurement",
    "It cannot",
  ):
    assert fact in text


def test_svg_ids_are_unique_on_the_page(written):
  out, _ = written
  names = re.findall(r'\sid="([^"]+)"', (out / "report.html").read_text())
  assert len(names) == len(set(names))


def test_the_rollout_is_an_animation(written):
  out, _ = written
  with Image.open(out / "rollout.gif") as picture:
    assert picture.n_frames > 1


def test_a_world_of_true_actions_is_reported_without_action_figures(
  clips, tmp_path
):
  results = run.evaluate(grey_game.true_world(), clips, grey_game.OPTIONS)
  metrics = report.write(
    tmp_path, results, dataclasses.replace(ORIGIN, commit=None)
  )
  assert metrics["action_nmi"] is None
  assert "trained with true actions" in (tmp_path / "report.html").read_text()


def test_curves_have_training_loss_and_held_out_psnr(tmp_path):
  found = curves.read(write_workdir(tmp_path / "w"))
  assert found.stage == "lam"
  steps, losses = found.panels["Training loss"]["loss"]
  assert len(steps) == len(losses) <= 120
  assert found.panels["Held-out PSNR, dB"]["prediction"][1] == pytest.approx(
    [20.0, 20.0]
  )
  assert set(found.panels["Held-out PSNR, dB"]) == {"prediction", "copy"}


def test_a_workdir_without_metrics_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="genie train"):
    curves.read(tmp_path)


def test_timings_must_be_numbers_by_stage(tmp_path):
  path = tmp_path / "t.json"
  path.write_text('{"tokenizer": "long"}')
  with pytest.raises(errors.UserError, match="must be a"):
    report.read_seconds(path)


def card(text, question):
  """Returns the card of a question, from the page's HTML."""
  text = html.unescape(text)
  return text.split(f"<h3>{question}</h3>")[1].split("</p></div>")[0]


@pytest.mark.parametrize("majority, verdict", [(0.3, "barely"), (0.5, "no")])
def test_buttons_that_do_not_tell_the_action_are_not_said_to_match(
  clips, tmp_path, majority, verdict
):
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  actions = results.metrics["details"]["actions"]
  # Above chance, which a code that means nothing to a player can be too.
  actions["nmi"] = {"value": 0.02, "low": 0.015, "high": 0.025}
  actions["shuffled_nmi"] = {"value": 0.002, "low": 0.001, "high": 0.003}
  actions["purity"] = {"value": 0.47, "low": 0.46, "high": 0.48}
  actions["majority"] = majority
  report.write(tmp_path, results, ORIGIN)
  text = (tmp_path / "report.html").read_text()
  found = card(text, "Do buttons match the keys?")
  assert f'<p class="big">{verdict}</p>' in found


def test_pictures_of_buttons_say_what_was_measured(clips, tmp_path):
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  results.metrics["details"]["held"] = {"buttons": []}
  results.metrics["details"]["control"] = {
    "buttons": [
      {"button": 1, "name": "left", "share": 0.84},
      {"button": 2, "name": "unclear", "share": None},
    ]
  }
  report.write(tmp_path, results, ORIGIN)
  text = (tmp_path / "report.html").read_text()
  assert "<b>Button 1: left</b>" in text
  assert "84 % of real transitions" in text
  assert "<b>Button 2</b>" in text
  # Codes of clips are not what the world does, and the page says so.
  assert "the world may not have learned to follow it" in text


def test_each_question_has_a_card_and_the_rule_is_stated(written):
  out, metrics = written
  text = (out / "report.html").read_text()
  assert len(metrics["verdicts"]) == len(questions.QUESTIONS)
  for answer in metrics["verdicts"]:
    found = card(text, answer["question"])
    assert f'<p class="big">{answer["verdict"]}</p>' in found
  assert html.unescape(verdicts.RULE) in html.unescape(text)


def test_drift_that_was_not_measured_is_said_to_be_missing(written):
  out, _ = written
  text = (out / "report.html").read_text()
  found = card(text, "Do long rollouts stay like the game?")
  assert '<p class="big">not measured</p>' in found
  assert "--drift-frames 64" in found
  assert "Long rollouts, likeness to the game" in text
  assert "<h2>Long rollouts</h2>" not in text
  assert "<h2>There and back</h2>" not in text


def test_walks_there_and_back_are_shown(clips, tmp_path):
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  walks = results.pictures["free"][:2]
  results = dataclasses.replace(
    results, pictures={**results.pictures, "there_and_back": walks}
  )
  report.write(tmp_path, results, ORIGIN)
  text = (tmp_path / "report.html").read_text()
  assert "<h2>There and back</h2>" in text
  assert 'alt="Walk 2: right, then left' in text


def test_strips_of_long_clips_show_some_of_the_frames(clips, tmp_path):
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  long = {
    name: np.repeat(results.pictures[name], 9, 1)[:, :34]
    for name in ("rollout_truth", "rollout_world")
  }
  results = dataclasses.replace(results, pictures={**results.pictures, **long})
  report.write(tmp_path, results, ORIGIN)
  text = (tmp_path / "report.html").read_text()
  assert "The strips show one frame in 3." in text
  clip = re.findall(r'style="--n:(\d+)" alt="Clip 1: (\w+)"', text)
  assert clip == [("12", "truth"), ("12", "world"), ("12", "error")]
  assert "The same as strips of frames, every frame" in text


def test_measured_drift_has_frames_figures_and_a_verdict(tmp_path):
  folder = grey_game.write_clips(
    tmp_path / "clips", {number: [120] for number in range(50, 56)}
  )
  options = dataclasses.replace(
    grey_game.OPTIONS, drift_frames=20, drift_levels=4
  )
  results = run.evaluate(grey_game.world(True), folder, options)
  metrics = report.write(tmp_path / "out", results, ORIGIN)
  text = (tmp_path / "out" / "report.html").read_text()
  assert "<h2>Long rollouts</h2>" in text
  for t in (16, 20):
    assert f"After {t} frames, relative to real clips" in text
  assert text.count('alt="Long rollout ') == 8  # World and game, 4 levels.
  answer = metrics["verdicts"][-1]
  assert answer["question"] == "Do long rollouts stay like the game?"
  assert answer["verdict"] != "not measured"


def test_a_figure_below_the_trivial_one_is_said_to_be_below(clips, tmp_path):
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  actions = results.metrics["details"]["actions"]
  actions["nmi"] = {"value": 0.01, "low": 0.005, "high": 0.02}
  actions["shuffled_nmi"] = {"value": 0.03, "low": 0.02, "high": 0.04}
  report.write(tmp_path, results, ORIGIN)
  text = (tmp_path / "report.html").read_text()
  found = card(text, "Do buttons match the keys?")
  assert "<b>0.010 (at least 0.005)</b>, below the trivial figure" in found
