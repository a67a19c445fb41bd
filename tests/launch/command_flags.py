"""The commands that the recipes call, and their flags."""

from collections.abc import Sequence

from tests.launch import recipes

# Flags of XPK 1.16, gcloud 528 and Docker 28.
FLAGS = {
  "xpk workload create": {
    "--cluster",
    "--project",
    "--zone",
    "--workload",
    "--docker-image",
    "--tpu-type",
    "--num-slices",
    "--max-restarts",
    "--restart-on-exit-codes",
    "--termination-grace-period-seconds",
    "--storage",
    "--command",
    "--priority",
    "--env",
  },
  "xpk workload delete": {
    "--cluster",
    "--project",
    "--zone",
    "--workload",
    "--force",
  },
  "xpk workload list": {
    "--cluster",
    "--project",
    "--zone",
    "--filter-by-job",
    "--filter-by-status",
  },
  "gcloud compute tpus queued-resources create": {
    "--project",
    "--zone",
    "--node-id",
    "--accelerator-type",
    "--runtime-version",
    "--spot",
    "--reserved",
    "--service-account",
  },
  "gcloud compute tpus queued-resources describe": {
    "--project",
    "--zone",
    "--format",
  },
  "gcloud compute tpus queued-resources delete": {
    "--project",
    "--zone",
    "--force",
    "--quiet",
    "--async",
  },
  "gcloud compute tpus tpu-vm ssh": {
    "--project",
    "--zone",
    "--worker",
    "--command",
  },
  "gcloud auth configure-docker": {"--quiet"},
  "kubectl create": {"--filename"},
  "kubectl delete jobset": {"--cascade", "--ignore-not-found", "--wait"},
  "kubectl get jobset": set(),
  "kubectl logs": {"--follow", "--tail", "--selector", "--container"},
  "docker run": {
    "--detach",
    "--name",
    "--restart",
    "--stop-timeout",
    "--privileged",
    "--user",
    "--net",
    "--shm-size",
    "--volume",
  },
  "srun": {"--cpu-bind", "--kill-on-bad-exit", "--wait"},
}


def assert_known(tool: str, argv: Sequence[str]) -> None:
  """Asserts that a command and its flags exist."""
  line = " ".join([tool, *argv])
  command = max(
    (known for known in FLAGS if line.startswith(known)), key=len, default=None
  )
  assert command, f"{line[:60]} is not in the list of known commands"
  unknown = recipes.flags(argv) - FLAGS[command]
  assert not unknown, f"{command} has no {unknown}"
