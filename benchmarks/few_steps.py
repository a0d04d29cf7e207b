"""Tuned samplers against every fixed one at few network calls: Fréchet distance and trajectories.

    python benchmarks/few_steps.py --run RUN --data TEST_IMAGES --name fashion-mnist

RUN is a run of `sfumato train`; what is tuned and drawn already is not done again, so the command
can be interrupted, and repeated for the table alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from _shared import machine, setting, write_text

RESULTS = Path(__file__).parent / "results"
NFES = (5, 6, 8, 10)
MANY = 35


def tuned_about(run: Path) -> list[dict[str, Any]]:
    """What was found, from the newest checkpoint's files."""
    checkpoint = max((run / "checkpoints").iterdir())
    files = (checkpoint / f"tuned-{nfe:03d}.toml" for nfe in NFES)
    return [tomllib.loads(file.read_text()) for file in files]


def frechet_table(results: list[dict[str, Any]]) -> list[str]:
    """A row a sampler: mean, half the range over the repeats, trajectory error."""
    measured = {(r["name"], r["nfe"]): r for r in results if r["frechet"] is not None}
    lines = [
        "| calls | sampler | Fréchet distance | each repeat | trajectory error |",
        "|---:|---|---:|---|---:|",
    ]
    for nfe in (*NFES, MANY):
        rows = sorted((r for (_, n), r in measured.items() if n == nfe), key=lambda r: r["frechet"])
        for row in rows:
            name = f"**{row['name']}**" if row["name"] == "tuned" else row["name"]
            each = ", ".join(f"{value:.1f}" for value in row["each"])
            lines.append(
                f"| {nfe} | {name} | {row['frechet']:.1f} ± {row['error']:.1f} | {each} | "
                f"{row['miss']:.4f} |"
            )
    return lines


def screened_table(results: list[dict[str, Any]]) -> list[str]:
    """The trajectory error of every solver."""
    found = {(r["name"], r["nfe"]): r["miss"] for r in results}
    lines = ["| | " + " | ".join(map(str, NFES)) + " |", "|---|" + "---:|" * len(NFES)]
    for name in dict.fromkeys(r["name"] for r in results):
        cells = [found.get((name, nfe)) for nfe in NFES]
        if any(cell is not None for cell in cells):
            shown = ("-" if cell is None else f"{cell:.4f}" for cell in cells)
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def _ranges(results: list[dict[str, Any]]) -> str:
    count = max(len(r["each"]) for r in results)
    return f"{count} ranges of seeds" if count > 1 else "one range of seeds"


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """The tuned sampler against the best fixed one, and against many calls."""
    lines: list[str] = []
    many = next(r for r in results if r["nfe"] == MANY)
    for nfe in NFES:
        here = [r for r in results if r["nfe"] == nfe]
        tuned = next(r for r in here if r["name"] == "tuned")
        fixed = [r for r in here if r["name"] != "tuned"]
        best_fd = min((r for r in fixed if r["frechet"] is not None), key=lambda r: r["frechet"])
        best_miss = min(fixed, key=lambda r: r["miss"])
        lines.append(
            f"- {nfe} calls: trajectory error {tuned['miss'] / best_miss['miss']:.2f} of the best "
            f"fixed solver's ({best_miss['name']}); Fréchet distance "
            f"{tuned['frechet'] / best_fd['frechet']:.3f} of the best fixed solver's "
            f"({best_fd['name']}) and {tuned['frechet'] / many['frechet']:.3f} of Heun's with "
            f"{MANY} calls."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="of what was measured before")
    args = parser.parse_args()
    about = machine()
    command = ["tune", str(args.run), "--nfe", *map(str, NFES), "--data", str(args.data)]
    command += ["-n", str(args.n), "--repeats", str(args.repeats), "--threads", str(args.threads)]
    if not args.table_only:
        subprocess.run([sys.executable, "-m", "sfumato", *command], check=True)
    kept = json.loads((args.run / "tuning" / "tuning.json").read_text())
    results, facts = kept["results"], kept["facts"]
    found = tuned_about(args.run)
    config = tomllib.loads((args.run / "config.toml").read_text())
    seconds = ", ".join(f"{t['about']['seconds']:.0f} s for {t['nfe']}" for t in found)
    lines = [
        f"# Few steps: {args.name}",
        "",
        setting(about),
        "",
        f"`{config['recipe']['name']}`, weights {facts['weights']}; {args.n:,} images of each of "
        f"{_ranges(results)}, the same for all, against {facts['reference']}; features "
        f"{facts['features']}. Fixed solvers walk the {facts['grid of the fixed solvers']} grid. "
        "± is one standard error (over the ranges where there are several). Trajectory error: mean "
        f"over {facts['trajectories']}, of the per-dimension RMSE on [-1, 1]; the teacher's own "
        f"error is about {found[0]['about']['teacher_error']:.2g}.",
        "",
        f"Tuning took {seconds} calls, the trajectories not counted.",
        "",
        *verdicts(results),
        "",
        "## Fréchet distance",
        "",
        "The best four fixed solvers by trajectory error, and the tuned one.",
        "",
        *frechet_table(results),
        "",
        "## Trajectory error of every solver",
        "",
        *screened_table(results),
        "",
    ]
    write_text(RESULTS / f"few_steps_{args.name}.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
