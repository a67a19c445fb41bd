"""A validator of JobSet manifests (jobset.x-k8s.io/v1alpha2).

It follows the API reference of JobSet 0.10. It is stricter than a cluster,
which silently drops unknown fields.
"""

import re
from collections.abc import Callable
from typing import Any

Check = Callable[[str, Any], None]


def check(manifest: dict) -> None:
  """Raises ValueError, with the path of the field, if a JobSet is invalid."""
  _JOBSET("JobSet", manifest)
  names = [job["name"] for job in manifest["spec"]["replicatedJobs"]]
  if len(set(names)) < len(names):
    raise ValueError(f"replicatedJobs repeat a name: {names}")
  for job in manifest["spec"]["replicatedJobs"]:
    pods = job["template"]["spec"].get("completions", 1)
    longest = "-".join(
      (
        manifest["metadata"]["name"],
        job["name"],
        str(job.get("replicas", 1) - 1),
        str(pods - 1),
        "12345",
      )
    )
    if len(longest) > 63:
      raise ValueError(f"the pod name {longest} has more than 63 characters")
  rules = manifest["spec"].get("failurePolicy", {}).get("rules", [])
  for rule in rules:
    unknown = set(rule.get("targetReplicatedJobs", [])) - set(names)
    if unknown:
      raise ValueError(f"failurePolicy targets {unknown}, which {names} lack")


def _fields(required: dict[str, Check], **optional: Check) -> Check:
  known = required | optional

  def run(path, value):
    _is(dict)(path, value)
    for name in required:
      if name not in value:
        raise ValueError(f"{path}.{name} is missing")
    for name, content in value.items():
      if name not in known:
        raise ValueError(
          f"{path}.{name} is unknown; the fields are {sorted(known)}"
        )
      known[name](f"{path}.{name}", content)

  return run


def _is(kind: type) -> Check:
  def run(path, value):
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
      raise ValueError(f"{path} is {value!r}, not of type {kind.__name__}")

  return run


def _at_least(least: int) -> Check:
  def run(path, value):
    _is(int)(path, value)
    if value < least:
      raise ValueError(f"{path} is {value}, below {least}")

  return run


def _one_of(*choices: str) -> Check:
  def run(path, value):
    if value not in choices:
      raise ValueError(f"{path} is {value!r}, not one of {choices}")

  return run


def _matches(pattern: str) -> Check:
  def run(path, value):
    _is(str)(path, value)
    if not re.fullmatch(pattern, value):
      raise ValueError(f"{path} is {value!r}, which does not match {pattern}")

  return run


def _each(item: Check) -> Check:
  def run(path, value):
    _is(list)(path, value)
    for number, content in enumerate(value):
      item(f"{path}[{number}]", content)

  return run


def _string_map(path, value):
  _is(dict)(path, value)
  for name, content in value.items():
    _is(str)(f"{path}.{name}", content)


_LABEL = _matches(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_METADATA = _fields(
  {"name": _LABEL},
  namespace=_LABEL,
  labels=_string_map,
  annotations=_string_map,
)
# The template of the Job is validated by Kubernetes' own schema.
_JOB = _fields(
  {"name": _LABEL, "template": _is(dict)},
  replicas=_at_least(0),
  groupName=_LABEL,
  dependsOn=_each(
    _fields({"name": _LABEL, "status": _one_of("Ready", "Complete")})
  ),
)
_RULE = _fields(
  {
    "action": _one_of(
      "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"
    )
  },
  name=_matches(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
  onJobFailureReasons=_each(
    _one_of(
      "BackoffLimitExceeded",
      "DeadlineExceeded",
      "FailedIndexes",
      "MaxFailedIndexesExceeded",
      "PodFailurePolicy",
    )
  ),
  targetReplicatedJobs=_each(_LABEL),
)
_JOBSET = _fields(
  {
    "apiVersion": _one_of("jobset.x-k8s.io/v1alpha2"),
    "kind": _one_of("JobSet"),
    "metadata": _METADATA,
    "spec": _fields(
      {"replicatedJobs": _each(_JOB)},
      network=_fields(
        {},
        enableDNSHostnames=_is(bool),
        subdomain=_LABEL,
        publishNotReadyAddresses=_is(bool),
      ),
      successPolicy=_fields(
        {"operator": _one_of("All", "Any")}, targetReplicatedJobs=_each(_LABEL)
      ),
      failurePolicy=_fields(
        {},
        maxRestarts=_at_least(0),
        restartStrategy=_one_of("Recreate", "BlockingRecreate"),
        rules=_each(_RULE),
      ),
      suspend=_is(bool),
      ttlSecondsAfterFinished=_at_least(0),
      coordinator=_fields(
        {"replicatedJob": _LABEL}, jobIndex=_at_least(0), podIndex=_at_least(0)
      ),
    ),
  }
)
