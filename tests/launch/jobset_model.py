"""The fields of jobset.x-k8s.io/v1alpha2 that a manifest may have.

Written from the API reference of JobSet 0.10; stricter than a cluster, which
drops a field that it does not know without a word.
"""

import re
from collections.abc import Callable
from typing import Any

Check = Callable[[str, Any], None]


def check(manifest: dict) -> None:
  """Raises ValueError, with the place, unless `manifest` is a JobSet."""
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
      raise ValueError(f"a pod would be called {longest}, above 63 letters")
  rules = manifest["spec"].get("failurePolicy", {}).get("rules", [])
  for rule in rules:
    unknown = set(rule.get("targetReplicatedJobs", [])) - set(names)
    if unknown:
      raise ValueError(f"failurePolicy targets {unknown}, not of {names}")


def _fields(required: dict[str, Check], **optional: Check) -> Check:
  known = required | optional

  def run(place, value):
    _is(dict)(place, value)
    for name in required:
      if name not in value:
        raise ValueError(f"{place}.{name} is missing")
    for name, content in value.items():
      if name not in known:
        raise ValueError(f"{place}.{name} is no field; {sorted(known)} are")
      known[name](f"{place}.{name}", content)

  return run


def _is(kind: type) -> Check:
  def run(place, value):
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
      raise ValueError(f"{place} is {value!r}, no {kind.__name__}")

  return run


def _whole(least: int) -> Check:
  def run(place, value):
    _is(int)(place, value)
    if value < least:
      raise ValueError(f"{place} is {value}, below {least}")

  return run


def _one_of(*choices: str) -> Check:
  def run(place, value):
    if value not in choices:
      raise ValueError(f"{place} is {value!r}, none of {choices}")

  return run


def _like(pattern: str) -> Check:
  def run(place, value):
    _is(str)(place, value)
    if not re.fullmatch(pattern, value):
      raise ValueError(f"{place} is {value!r}, not like {pattern}")

  return run


def _each(item: Check) -> Check:
  def run(place, value):
    _is(list)(place, value)
    for number, content in enumerate(value):
      item(f"{place}[{number}]", content)

  return run


def _texts(place, value):
  _is(dict)(place, value)
  for name, content in value.items():
    _is(str)(f"{place}.{name}", content)


_LABEL = _like(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_METADATA = _fields(
  {"name": _LABEL}, namespace=_LABEL, labels=_texts, annotations=_texts
)
# The Job inside is for Kubernetes' own schema.
_JOB = _fields(
  {"name": _LABEL, "template": _is(dict)},
  replicas=_whole(0),
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
  name=_like(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
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
        maxRestarts=_whole(0),
        restartStrategy=_one_of("Recreate", "BlockingRecreate"),
        rules=_each(_RULE),
      ),
      suspend=_is(bool),
      ttlSecondsAfterFinished=_whole(0),
      coordinator=_fields(
        {"replicatedJob": _LABEL}, jobIndex=_whole(0), podIndex=_whole(0)
      ),
    ),
  }
)
