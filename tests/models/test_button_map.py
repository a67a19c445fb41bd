import jax
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.models import button_map

# Codes: 0 left, 1 nothing, 2 jump, 3 fall, 4 left as well.
FIELDS = {
  "names": ["left", "nothing", "jump"],
  "button_of": [0, 1, 2, -1, 0],
  "longest": [0, 0, 2],
  "first": 1,
}
MAP = button_map.from_config(FIELDS, 5)
LEFT, NOTHING, JUMP = range(3)


def press(*codes):
  return MAP.press(np.array(codes, np.int32)).tolist()


def test_codes_with_the_same_effect_are_one_button():
  assert press(0, 4, 1, 0) == [LEFT, LEFT, NOTHING, LEFT]


def test_during_a_fall_the_button_before_is_held():
  assert press(0, 3, 3, 1, 3) == [LEFT, LEFT, LEFT, NOTHING, NOTHING]


def test_before_the_first_button_nothing_is_held():
  assert press(3, 3, 4) == [NOTHING, NOTHING, LEFT]


def test_a_long_rise_is_pressed_only_at_its_beginning():
  assert press(0, 2, 2, 2, 2, 3) == [LEFT, JUMP, JUMP, LEFT, LEFT, LEFT]
  # Another jump is pressed again.
  assert press(2, 2, 2, 3, 2) == [JUMP, JUMP, NOTHING, NOTHING, JUMP]


def test_any_codes_equal_a_loop_over_clips():
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 5, (3, 7, 20)).astype(np.int32)
  found = np.asarray(jax.jit(MAP.press)(codes))
  assert found.shape == codes.shape and found.dtype == np.int32
  for clip, pressed in zip(
    codes.reshape(-1, 20), found.reshape(-1, 20), strict=True
  ):
    held, rise = NOTHING, 0
    for code, button in zip(clip, pressed, strict=True):
      rise = rise + 1 if code == 2 else 0
      if code == 2 and rise <= 2:
        assert button == JUMP
        continue
      if code in (0, 4, 1):
        held = NOTHING if code == 1 else LEFT
      assert button == held


def vary(pressed, shortest, longest, seed=0):
  key = jax.random.key(seed)
  return np.asarray(
    MAP.vary(np.array(pressed, np.int32), key, shortest, longest)
  )


def test_a_press_lasts_the_drawn_number_of_transitions():
  pressed = [LEFT, JUMP, JUMP, LEFT, NOTHING, NOTHING, NOTHING]
  for length in (1, 2, 4):
    wanted = [LEFT, *[JUMP] * length, *[LEFT, LEFT, NOTHING][length - 1 :]]
    found = vary(pressed, length, length)
    assert found.tolist() == wanted + pressed[len(wanted) :]


def test_a_press_that_ended_before_its_limit_is_not_extended():
  pressed = [NOTHING, JUMP, LEFT, LEFT]
  assert vary(pressed, 4, 4).tolist() == pressed


def test_every_length_occurs_equally_often_and_nothing_else_changes():
  pressed = np.full((6000, 12), NOTHING, np.int32)
  pressed[:, 2:4] = JUMP
  found = vary(pressed, 1, 6)
  lengths = (found == JUMP).sum(1)
  assert set(found[:, :2].ravel()) == {NOTHING}
  for clip, length in zip(found[:50], lengths[:50], strict=True):
    assert clip.tolist() == [NOTHING] * 2 + [JUMP] * length + [NOTHING] * (
      10 - length
    )
  share = np.bincount(lengths, minlength=7)[1:] / len(lengths)
  np.testing.assert_allclose(share, 1 / 6, atol=0.02)


def test_a_press_during_an_extended_one_begins_anew():
  pressed = [JUMP, JUMP, LEFT, JUMP, JUMP, LEFT, LEFT, LEFT]
  assert vary(pressed, 3, 3).tolist() == [JUMP] * 6 + [LEFT] * 2


def test_a_config_is_read_back_as_written():
  assert button_map.from_config(MAP.to_config(), 5) == MAP
  assert MAP.to_config() == FIELDS


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"colour": 1}, "Unknown field model.buttons.colour"),
    ({"names": []}, "names"),
    ({"names": ["a", "a", "b"]}, "the same name twice"),
    ({"button_of": [0, 1, 2, -1]}, "each of the 5 codes needs a number"),
    ({"button_of": [0, 1, 2, -1, 3]}, "from -1 to 2"),
    ({"button_of": [0, 1, 2, -1, 0.5]}, "from -1 to 2"),
    ({"longest": [0, 0]}, "longest"),
    ({"longest": [0, 0, -1]}, "longest"),
    ({"first": 3}, "first"),
    ({"first": 2}, "can be held for any time"),
  ],
)
def test_a_wrong_map_is_one_line(changes, said):
  with pytest.raises(errors.UserError, match=said) as raised:
    button_map.from_config({**FIELDS, **changes}, 5)
  assert "\n" not in str(raised.value)


def test_a_missing_field_is_named():
  with pytest.raises(errors.UserError, match="has no first"):
    button_map.from_config(
      {name: value for name, value in FIELDS.items() if name != "first"}, 5
    )


def test_the_number_of_buttons_is_that_of_the_map_or_of_the_codes():
  world = {"num_latent_actions": 5}
  assert button_map.num_buttons({"world": world, "model": {}}) == 5
  assert (
    button_map.num_buttons({"world": world, "model": {"buttons": FIELDS}}) == 3
  )
