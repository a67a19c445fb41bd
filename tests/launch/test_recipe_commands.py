"""Tests of the commands of the launch recipes."""

import argparse
import configparser
import contextlib
import os
import re
import subprocess

import pytest

from genie_jax.cli import plan, train
from genie_jax.core import config as config_lib
from genie_jax.sharding import cluster, mesh
from genie_jax.train import workdir
from tests.fixtures import stage_data
from tests.launch import command_flags, launchers, recipes
from tests.multihost import fleet

JOBSET, XPK, QUEUED, SLURM = recipes.SHELL
VERBS = [
  (script, verb)
  for script in (JOBSET, XPK, QUEUED)
  for verb in ("start", "watch", "resume", "delete")
]
UNSET = [
  (script, name)
  for script in recipes.SHELL
  for name in recipes.VARIABLES[script.name]
]
name_of = lambda value: getattr(value, "name", None)


@pytest.mark.parametrize("script, name", UNSET, ids=name_of)
def test_the_error_for_an_unset_variable_names_it(script, name, tmp_path):
  ended = recipes.start(tmp_path, script, "start", without=name)
  assert ended.code == 2 and len(ended.err.splitlines()) == 1
  assert f"{name} is not set" in ended.err
  assert not ended.calls
  # The header of the file explains the variable.
  header = script.read_text().partition("set -euo")[0]
  assert re.search(rf"^#.*\b{name}\b", header, re.M)


@pytest.mark.parametrize("script", [JOBSET, XPK, QUEUED], ids=name_of)
def test_the_error_for_an_unknown_verb_lists_the_known_ones(script, tmp_path):
  for verb in ((), ("strat",)):
    ended = recipes.start(tmp_path, script, *verb)
    assert ended.code == 2 and not ended.calls
    assert "give start, watch, resume or delete" in ended.err


@pytest.mark.parametrize("script, verb", VERBS, ids=name_of)
def test_every_verb_uses_existing_commands_and_flags(script, verb, tmp_path):
  ended = recipes.start(
    tmp_path, script, verb, answers={recipes.STATE: [("ACTIVE\n", 0)] * 3}
  )
  assert ended.code == 0, ended.err
  assert ended.calls
  for call in ended.calls:
    command_flags.assert_known(call.tool, call.argv)


def test_every_recipe_starts_the_same_command(tmp_path):
  lines = {
    script.name: recipes.genie(tmp_path / script.name, script)
    for script in recipes.SHELL
  }
  assert lines["jobset.sh"] == [
    "train",
    "--config",
    "experiments/platformers/dynamics.py",
    "--workdir",
    f"gs://{recipes.BUCKET}/{recipes.RUN}",
    "--config.data.path=/bucket/tokens",
    "--compilation-cache",
    f"gs://{recipes.BUCKET}/cache",
    "--initialization-timeout",
    "86400",
  ]
  # With Slurm, tokens are on a disk, and GPUs have less memory.
  slurm = [
    word.replace("/disk/tokens", "/bucket/tokens")
    for word in lines["slurm.sbatch"]
  ]
  slurm.remove("--config.model.transformer.remat=full")  # once
  lines["slurm.sbatch"] = slurm
  for name, line in lines.items():
    assert line == lines["jobset.sh"], name


@pytest.mark.parametrize(
  "script, remat", [(JOBSET, "products"), (SLURM, "full")], ids=name_of
)
def test_genie_train_accepts_the_command(script, remat, tmp_path, monkeypatch):
  monkeypatch.chdir(recipes.ROOT)
  line = recipes.genie(tmp_path, script)
  parser = argparse.ArgumentParser(prog="genie train")
  train.add_arguments(parser)
  args, overrides = parser.parse_known_args(line[1:])
  assert args.distributed == "auto" and args.coordinator is None
  config = config_lib.load(args.config, overrides)
  assert config.data.path.endswith("/tokens") and config.stage == "dynamics"
  assert config.model.transformer.remat == remat


def test_the_slurm_recipe_installs_the_extras_for_gpus_and_buckets():
  header = SLURM.read_text().partition("set -euo")[0]
  (extras,) = re.findall(r'pip install "\.\[([\w,]+)\]"', header)
  setup = configparser.ConfigParser()
  setup.read(recipes.ROOT / "setup.cfg")
  assert extras.split(",") == ["cuda", "gs"]
  assert set(extras.split(",")) <= set(setup["options.extras_require"])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
  return stage_data.write_tokens(
    tmp_path_factory.mktemp("data") / "tokens",
    (90, 160, 3),
    grid=(6, 10),
    num_codes=64,
    tokenizer=stage_data.random_part(
      "tokenizer",
      config_lib.load(
        str(recipes.ROOT / "experiments/platformers/tokenizer.py:smoke")
      ),
    ),
  )


@pytest.mark.parametrize("script", recipes.SHELL, ids=name_of)
def test_the_processes_of_every_launcher_are_detected(script, monkeypatch):
  launcher = launchers.LAUNCHERS[script.name]
  found = []
  with contextlib.ExitStack() as stack:
    for variables in launcher.variables(2, stack):
      for name, value in variables.items():
        monkeypatch.setenv(name, value)
      # With libtpu, and without other variables of this machine.
      found.append(
        cluster.detect(environ=variables | {"TPU_LIBRARY_PATH": "libtpu.so"})
      )
  assert [each.process_id for each in found] == [0, 1]
  for each in found:
    assert (each.found_by, each.num_processes) == (launcher.found_by, 2)
    assert each.coordinator == found[0].coordinator
    assert each.coordinator.startswith("localhost:")


@pytest.mark.slow
@pytest.mark.parametrize("script", recipes.SHELL, ids=name_of)
def test_two_processes_run_the_command_in_smoke_mode_and_resume(
  script, tokens, tmp_path
):
  line = recipes.genie(tmp_path / "recipe", script)
  path = next(word for word in line if word.startswith("--config.data.path="))
  local = {
    (name := "experiments/platformers/dynamics.py"): f"{name}:smoke",
    f"gs://{recipes.BUCKET}/{recipes.RUN}": str(tmp_path / "run"),
    path: f"--config.data.path={tokens}",
    f"gs://{recipes.BUCKET}/cache": os.environ.get(
      "GENIE_TEST_CACHE", str(recipes.ROOT / ".cache" / "jax")
    ),
  }
  assert set(local) < set(line)
  line = [local.get(word, word) for word in line[1:]] + [
    # These must match the records of this test.
    "--config.world.num_latent_actions=8",
    "--config.world.fps=15",
    # These shorten the compilation.
    "--config.eval_batches=0",
    "--config.optimizer.name=adamw",
  ]
  launcher = launchers.LAUNCHERS[script.name]
  with contextlib.ExitStack() as stack:
    start = lambda name, *more: fleet.train(
      tmp_path / name,
      2,
      *line,
      *more,
      devices=1,
      module=launcher.module,
      launch=lambda: launcher.variables(2, stack),
    )
    first = start("first", "--config.steps=2")
    ended = start("again")
  for index in (0, 1):
    assert f"Process {index} of 2 (by {launcher.found_by})" in first.text(index)
  assert "Resuming from step 2" in ended.text(0)
  assert "trained to step 4" in ended.text(0)
  assert "trained to step" not in ended.text(1)


def test_the_guide_moves_a_run_to_512_chips_by_allowed_changes(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(recipes.ROOT)
  text = (recipes.ROOT / "docs/launch.md").read_text()
  section = text.partition("### 7.")[2].partition("### 8.")[0]
  changes = re.findall(r"`(--config\.[\w.]+=\S+)`", section)
  assert changes and "For 512 chips" in section
  before, after = (
    config_lib.load("experiments/platformers/dynamics.py", overrides)
    for overrides in ([], changes)
  )

  def remainder(config):
    sizes = mesh.sizes(config.mesh, 512)
    parts = sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate
    return config.data.batch_size % parts

  assert remainder(before) and not remainder(after)
  workdir.write(tmp_path, config_lib.to_dict(before))
  workdir.check(
    tmp_path, config_lib.to_dict(after), resumes=True
  )  # raises for forbidden changes


@pytest.mark.parametrize("name", ["docs/launch.md", "BUILD.md"])
def test_commands_in_the_guides_use_existing_flags_and_files(name):
  text = (recipes.ROOT / name).read_text()
  lines = re.sub(r"\\\n\s*", "", text).splitlines()
  found = {"train": train, "plan": plan}
  seen = dict.fromkeys(found, 0)
  for line in lines:
    # The command without redirection, and with a value for the loop's $id.
    command = line.replace("$id", "0").partition(" > ")[0]
    words = [word for word in command.split() if not re.match("[A-Z_]+=", word)]
    if words[:1] == ["genie"] and len(words) > 1 and words[1] in found:
      parser = argparse.ArgumentParser()
      found[words[1]].add_arguments(parser)
      _, rest = parser.parse_known_args(words[2:])
      assert all(word.startswith("--config.") for word in rest), line
      seen[words[1]] += 1
  assert min(seen.values()) >= 1, seen
  for path in re.findall(
    r"(?:`|^)((?:launch|docs|experiments)/[\w./]+)(?=`| )", text, re.M
  ):
    assert (recipes.ROOT / path).exists(), path


def test_the_slurm_recipe_lets_nccl_fail_rather_than_use_tcp(tmp_path):
  line = next(
    line
    for line in SLURM.read_text().splitlines()
    if "NCCL_NET" in line and line.startswith("export")
  )
  ask = lambda env: subprocess.run(
    ["bash", "-euc", f'{line}; echo "$NCCL_NET $NCCL_DEBUG"'],
    env=env,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  assert ask({}) == ["IB", "WARN"]
  # The user's own network comes first.
  assert ask({"NCCL_NET": "Plugin"}) == ["Plugin", "WARN"]
