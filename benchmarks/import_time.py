"""What `import sfumato` costs on top of `import torch`, with the names a sampling script uses.

python benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from _shared import machine, write_text

TABLE = Path(__file__).parent / "results" / "import_time.md"
NAMES = "sample generate Heun DDIM karras predicts_noise edm_preconditioned NoiseLevels noise_for"
PROGRAMS = {
    "import torch": "import torch",
    "import torch, sfumato": "import torch, sfumato",
    "import sfumato and the names above": f"import sfumato; [getattr(sfumato, n) for n in "
    f"{NAMES.split()!r}]",
}


def seconds(program: str) -> float:
    """Wall-clock seconds of the imports alone, in a fresh interpreter."""
    clock = "time.perf_counter()"
    timed = f"import time; start = {clock}; {program}; print({clock} - start)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    about = machine()
    for program in PROGRAMS.values():
        seconds(program)
    rounds = [{name: seconds(p) for name, p in PROGRAMS.items()} for _ in range(args.runs)]
    base = "import torch"
    lines = [
        "# Import time\n",
        f"{about['date']}; {about['processor']}, {about['cores']} cores; "
        f"torch {about['versions']['torch']}. Medians of {args.runs} interleaved runs; "
        f"the names are {NAMES}.\n",
        "| | seconds | more than torch alone (median of the differences) |",
        "|---|---:|---:|",
    ]
    for name in PROGRAMS:
        own = statistics.median(r[name] for r in rounds)
        more = statistics.median(r[name] - r[base] for r in rounds)
        lines.append(f"| {name} | {own:.2f} | {more:+.3f} |")
    text = "\n".join(lines) + "\n"
    write_text(args.table, text)
    print(text)


if __name__ == "__main__":
    main()
