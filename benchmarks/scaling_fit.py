r"""Simulates scaling studies: how often a fit foretells, and its intervals.

Run:  python benchmarks/scaling_fit.py --noise 0.002 0.005 0.01 --ladders 100
Result: docs/scaling.md, "What a fit can tell"

A simulated study has the sizes of a ladder below one CPU's reach, 41,000 to
1.3M parameters, three seeds on three of them, and is asked for 6.8M. The true
law is L = 1.1 + 0.9 (N / 300,000)^-0.35, so that the loss falls from 2.9 to
1.4; each run has normal noise of log L. The columns:

  within_3_percent   share of studies whose prediction is within 3 % of the
                     true loss
  within_a_third     ... and within a third of the drop from the last rung
  sd                 standard deviation of the relative error
  pure_power         mean relative error of a power law without E
  exponent, floor, prediction   share of studies whose 95 % interval holds the
                     true value; for the prediction, the loss of one more run
"""

import argparse

import numpy as np

from genie_jax.core import files, provenance
from genie_jax.scaling import laws

SIZES = (41e3, 75e3, 140e3, 260e3, 480e3, 800e3, 1.3e6)
SEEDS = (3, 1, 1, 3, 1, 3, 1)
LARGEST = 6.8e6
TRUE = laws.Law(laws.PARAMS, 1.1, (0.9,), (0.35,), (3e5,))


def simulate(noise: float, ladders: int, resamples: int, seed: int) -> dict:
  """Returns the row of one level of noise."""
  rng = np.random.default_rng(seed)
  x = np.repeat(SIZES, SEEDS)[:, None]
  largest = np.array([[LARGEST]])
  true, last = float(TRUE(largest)[0]), float(TRUE(x[-1:])[0])
  errors, powers, hits = [], [], []
  for ladder in range(ladders):
    losses = TRUE(x) * np.exp(noise * rng.standard_normal(len(x)))
    law = laws.fit(laws.PARAMS, x, losses)
    errors.append(float(law(largest)[0]) - true)
    powers.append(laws.fit(laws.PURE_POWER, x, losses)(largest)[0] / true - 1)
    draws, residuals = laws.resample(
      law, x, losses, seed=ladder, count=resamples
    )
    run = true * np.exp(noise * rng.standard_normal())
    again = np.exp(rng.choice(residuals, len(draws)))
    hits.append(
      [
        low <= value <= high
        for value, (low, high) in (
          (TRUE.exponents[0], _ends([d.exponents[0] for d in draws])),
          (TRUE.floor, _ends([d.floor for d in draws])),
          (run, _ends(again * [float(d(largest)[0]) for d in draws])),
        )
      ]
    )
  error = np.abs(errors)
  exponent, floor, prediction = np.mean(hits, 0)
  return {
    "noise": noise,
    "within_3_percent": float(np.mean(error <= 0.03 * true)),
    "within_a_third": float(np.mean(error <= (last - true) / 3)),
    "sd": float(np.std(errors) / true),
    "pure_power": float(np.mean(powers)),
    "exponent": float(exponent),
    "floor": float(floor),
    "prediction": float(prediction),
  }


def _ends(values) -> np.ndarray:
  return np.quantile(values, (0.025, 0.975))


def main() -> None:
  """Simulates each level of noise and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--noise", type=float, nargs="+", default=[0.005])
  parser.add_argument("--ladders", type=int, default=100)
  parser.add_argument("--resamples", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", default=None, metavar="FILE")
  args = parser.parse_args()
  rows = []
  for noise in args.noise:
    rows.append(simulate(noise, args.ladders, args.resamples, args.seed))
    if len(rows) == 1:
      print(" ".join(f"{name:>16}" for name in rows[0]))
    print(
      " ".join(f"{value:>16.3f}" for value in rows[-1].values()), flush=True
    )
  if args.json:
    files.write_json(
      args.json,
      {
        **provenance.collect(["python", __file__]),
        "ladders": args.ladders,
        "resamples": args.resamples,
        "seed": args.seed,
        "rows": rows,
      },
    )


if __name__ == "__main__":
  main()
