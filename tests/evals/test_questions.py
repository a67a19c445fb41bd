import dataclasses

import pytest

from genie_jax.evals import questions

KEYS = "Do buttons match the keys?"


def interval(value, margin=0.0):
  return {"value": value, "low": value - margin, "high": value + margin}


def verdict(details, title, actions="latent"):
  found = questions.answer(details, actions)
  return {each["question"]: each["verdict"] for each in found}[title]


def test_nothing_measured_is_said_of_every_question():
  found = questions.answer({}, "latent")
  assert len(found) == len(questions.QUESTIONS)
  assert {each["verdict"] for each in found} == {"not measured"}
  assert all(each["share"] is None for each in found)


def test_keys_are_asked_for_only_if_buttons_are_learned():
  asked = lambda actions: [
    each["question"] for each in questions.answer({}, actions)
  ]
  assert KEYS in asked("latent")
  assert KEYS not in asked("true")


def control(nmi, previous, attainable=0.5, supervised=None):
  return {
    "control": {
      "effect": {
        "all": {
          "nmi": interval(nmi, 0.01),
          "previous_nmi": interval(previous, 0.01),
          "attainable_nmi": interval(attainable),
          "supervised_nmi": supervised and interval(supervised),
        }
      }
    }
  }


@pytest.mark.parametrize(
  "nmi, previous, expected",
  [
    (0.12, 0.11, "no"),  # No more than the code before carries.
    (0.14, 0.11, "barely"),
    (0.25, 0.11, "partly"),
    (0.45, 0.11, "yes"),
  ],
)
def test_codes_must_tell_more_than_the_code_before(nmi, previous, expected):
  assert verdict(control(nmi, previous), KEYS) == expected


def test_the_ceiling_of_the_keys_is_named_by_what_attains_it():
  text = lambda *ceiling: next(
    each["text"]
    for each in questions.answer(control(0.3, 0.1, *ceiling), "latent")
    if each["question"] == KEYS
  )
  assert "0.500 (the true motion)" in text(0.5)
  assert "0.500 (the true motion)" in text(0.5, 0.4)
  assert "0.500 (a supervised model" in text(0.5, 0.5)


def test_chance_counts_where_the_code_before_tells_nothing():
  chance = {"actions": {"shuffled_nmi": interval(0.2, 0.02)}}
  assert verdict(control(0.22, 0.0) | chance, KEYS) == "no"
  assert verdict(control(0.28, 0.0) | chance, KEYS) == "partly"


def delta(value, low, psnr=22.7, ceiling=27.2):
  return {
    "controllability": {
      "delta_previous": {
        "frames": {
          "1": {
            "all_pixels": {
              "previous": {"value": value, "low": low, "high": value},
              "psnr_previous": interval(psnr),
              "psnr_ceiling": interval(ceiling),
            }
          }
        }
      }
    }
  }


@pytest.mark.parametrize(
  "value, low, expected",
  [
    (0.35, -0.1, "no"),
    (0.35, 0.2, "barely"),
    (1.8, 1.0, "partly"),
    (3.0, 2.0, "yes"),
  ],
)
def test_control_is_what_the_button_before_does_not_give(value, low, expected):
  title = "Are buttons control, not state?"
  assert verdict(delta(value, low), title) == expected


def counterfactuals(score, chance, ceiling=0.8):
  last = {
    "score": interval(score, 0.05),
    "chance": interval(chance, 0.02),
    "ceiling": interval(ceiling),
  }
  # The longest hold counts, in the order of numbers and not of text.
  return {"counterfactuals": {"measured": True, "after": {
    "4": last | {"score": interval(ceiling)}, "16": last
  }}}  # fmt: skip


@pytest.mark.parametrize(
  "score, expected",
  [
    (0.26, "no"),  # Its interval contains what shuffled buttons reach.
    (0.31, "barely"),
    (0.5, "partly"),
    (0.75, "yes"),
  ],
)
def test_buttons_must_do_more_than_shuffled_ones(score, expected):
  title = "Do buttons do what the game's keys do?"
  assert verdict(counterfactuals(score, 0.2), title) == expected
  assert verdict(counterfactuals(score, 0.2), title, "true") == expected


def test_without_counterfactuals_the_remedy_is_stated():
  absent = {"counterfactuals": {"measured": False, "reason": "none"}}
  found = {
    each["question"]: each for each in questions.answer(absent, "latent")
  }["Do buttons do what the game's keys do?"]
  assert found["verdict"] == "not measured"
  assert "--counterfactuals 4" in found["text"]


def dreamt(world, **trivial):
  """Returns accuracies after a change; those with held keys are perfect."""
  trivial = {"random_buttons": 0.3, "other_clip": 0.2, "majority": 0.25} | (
    trivial
  )
  part = {
    "by_source": {
      "world": interval(world, 0.04),
      "tokenizer": interval(0.7),
      "random_buttons": interval(trivial["random_buttons"], 0.02),
      "other_clip": interval(trivial["other_clip"], 0.02),
    },
    "majority": interval(trivial["majority"], 0.02),
  }
  held = part | {"by_source": dict.fromkeys(part["by_source"], interval(1.0))}
  return {"inverse_dynamics": {"effect": {"all": held, "after_change": part}}}


@pytest.mark.parametrize(
  "world, trivial, expected",
  [
    (0.34, {}, "no"),  # No better than with random buttons.
    (0.38, {}, "barely"),
    (0.5, {}, "partly"),
    (0.65, {}, "yes"),
    (0.5, {"random_buttons": 0.5}, "no"),
    (0.5, {"other_clip": 0.5}, "no"),
    (0.5, {"majority": 0.5}, "no"),
  ],
)
def test_dreamt_frames_must_show_keys_that_nothing_simpler_shows(
  world, trivial, expected
):
  title = "Do dreamt frames show the commanded key?"
  assert verdict(dreamt(world, **trivial), title) == expected


def drift(world, frozen, other):
  likeness = {
    "world": interval(world, 0.05),
    "frozen": interval(frozen, 0.01),
    "other_level": interval(other, 0.05),
    "tokenizer": interval(0.95),
  }
  # The longest rollout counts, in the order of numbers and not of text.
  early = likeness | {"world": interval(0.94)}
  return {"drift": {"horizons": {
    "64": {"likeness": early}, "160": {"likeness": likeness}
  }}}  # fmt: skip


@pytest.mark.parametrize(
  "world, frozen, other, expected",
  [
    (0.4, 0.0, 0.4, "no"),  # Not more like the level than another level.
    (0.4, 0.6, 0.1, "no"),  # Not more like the game than frozen frames.
    (0.6, 0.0, 0.4, "partly"),
    (0.9, 0.0, 0.4, "yes"),
  ],
)
def test_drift_is_judged_against_frozen_frames_and_another_level(
  world, frozen, other, expected
):
  title = "Do long rollouts stay like the game?"
  assert verdict(drift(world, frozen, other), title) == expected


def test_a_new_question_needs_one_entry(monkeypatch):
  added = dataclasses.replace(questions.QUESTIONS[0], title="Another one?")
  monkeypatch.setattr(questions, "QUESTIONS", (*questions.QUESTIONS, added))
  details = {"reconstruction": {"margin": interval(4.0, 0.1)}}
  assert verdict(details, "Another one?") == "yes"
