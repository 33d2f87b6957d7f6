"""Serve every deployment from this process: ``python -m flows.serve``, with a server named to Prefect."""

import argparse
import asyncio
from pathlib import Path

from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.registry import FLOWS, flow_of


def serve(ready: Path | None) -> None:
    """Register every deployment, say so by making the file ``ready``, and run what is asked for, one at a time."""
    runner = Runner(name="capgap", limit=1, query_seconds=1, pause_on_shutdown=False)
    for name in FLOWS:
        runner.add_deployment(flow_of(name).to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH))
    if ready is not None:
        ready.touch()
    asyncio.run(runner.start())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--ready", type=Path, help="made once every deployment is registered")
    serve(parser.parse_args().ready)
