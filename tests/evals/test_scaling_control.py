import grey_game

from experiments.scaling import control
from genie_jax.evals import clips as clips_lib


def test_only_a_world_that_obeys_its_buttons_has_control(clips):
  found = clips_lib.pick(
    clips,
    "test",
    num_frames=6,
    num_clips=24,
    num_levels=6,
    with_actions=False,
    seed=0,
  )
  obedient = control.measure(grey_game.world(True), found, seed=0)
  deaf = control.measure(grey_game.world(False), found, seed=0)
  assert set(obedient) == {"delta_psnr", "delta_previous_code_psnr"}
  for name in obedient:
    assert obedient[name]["low"] > 0
    assert deaf[name] == {"value": 0, "low": 0, "high": 0}
