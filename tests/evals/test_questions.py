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


def control(nmi, previous, attainable=0.5):
  return {
    "control": {
      "effect": {
        "all": {
          "nmi": interval(nmi, 0.01),
          "previous_nmi": interval(previous, 0.01),
          "attainable_nmi": interval(attainable),
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
