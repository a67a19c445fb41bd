"""Campaigns of many random faults, which take hours; they can be interrupted.

Run:  python -m tests.faults                      all campaigns
      python -m tests.faults --only kills-lam     one of them
      python -m tests.faults --share 0.05         a twentieth of each
      python -m tests.faults --table              the table of what was found

Each trial is a line of FOLDER/CAMPAIGN.jsonl; a campaign goes on where it was
interrupted. Ends with code 1 if any trial has failed.
"""

import argparse
import pathlib
import sys

from tests.faults import disks, flips, hosts, inputs, jobs, kills, trials


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns all campaigns.

  Args:
    base: Folder of the data and models of `jobs.prepare`.
    scratch: Folder in which trials work.
  """
  found: dict[str, trials.Campaign] = {}
  for module in (kills, hosts, disks, flips, inputs):
    found |= module.campaigns(base, scratch)
  return found


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", default="runs/faults", metavar="FOLDER")
  parser.add_argument("--only", action="append", metavar="CAMPAIGN")
  parser.add_argument("--share", type=float, default=1.0, metavar="X")
  parser.add_argument("--table", action="store_true")
  args = parser.parse_args()
  out = pathlib.Path(args.out).resolve()
  base, scratch = out / "base", out / "scratch"
  known = campaigns(base, scratch)
  unknown = set(args.only or ()) - set(known)
  if unknown:
    parser.error(f"no campaign {min(unknown)}; they are {', '.join(known)}")
  if args.table:
    print("\n".join(trials.table(known, out)))
    return 0
  jobs.prepare(base)
  failed = 0
  for name, campaign in known.items():
    if args.only and name not in args.only:
      continue
    faults = max(1, round(args.share * campaign.faults))
    rows = trials.run(campaign, out / f"{name}.jsonl", faults)
    found = sum(len(row["failures"]) for row in rows)
    failed += found
    seconds = sum(row["seconds"] for row in rows)
    injected = sum(row["injected"] for row in rows)
    print(
      f"{name}: {injected} faults, {found} failures, {seconds:.0f} s",
      flush=True,
    )
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
