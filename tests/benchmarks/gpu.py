"""Every benchmark on a GPU: what a stage takes and what limits it, students and decoders beside peers, loss heads.

``python tests/benchmarks/gpu.py``: all of SST-2, in seconds of CUDA events, printed.
``--small`` tries the same scripts on this machine's CPU with few rows and one repeat: their figures mean nothing.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scripts one after the other; say which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="on a CPU, to see that it runs")
    given = parser.parse_args(argv)
    if not given.small and not torch.cuda.is_available():
        print("There is no GPU here. --small tries the scripts on the CPU.", file=sys.stderr)
        return 2
    rows, repeats = (
        (["--rows", "400"], ["--repeats", "1"]) if given.small else (["--rows", "70000"], ["--repeats", "5"])
    )
    asked = {
        "stages.py": [*rows, *repeats, "--no-growth"],
        "distillation.py": [*rows, *repeats, "--more", "-", "--only", "student", "--only", "step"],
        "loss_heads.py": [*repeats, "--device", "cpu" if given.small else "cuda"],
        "decoders.py": [*repeats, *(["--small", "--device", "cpu"] if given.small else ["--device", "cuda"])],
    }
    failed = []
    for script, options in asked.items():
        print(f"== {script} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, str(HERE / script), *options], check=False).returncode:
            failed.append(script)
    print(f"failed: {', '.join(failed)}" if failed else "all done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
