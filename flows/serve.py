"""Serve every deployment from this process: ``python -m flows.serve``, with a server named to Prefect."""

import argparse
import asyncio
from pathlib import Path

from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows import alive
from flows.registry import FLOWS, flow_of

EVERY = 30.0
"""Seconds between two looks for runs whose process has died."""


def serve(ready: Path | None) -> None:
    """Register every deployment, say so by making the file ``ready``, and run what is asked for, one at a time."""
    runner = Runner(name="capgap", limit=1, query_seconds=1, pause_on_shutdown=False)
    for name in FLOWS:
        runner.add_deployment(flow_of(name).to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH))
    if ready is not None:
        ready.touch()
    asyncio.run(_start(runner))


async def _start(runner: Runner) -> None:
    """Serve, and look every ``EVERY`` seconds for runs whose process has died."""
    watching = asyncio.create_task(_watch())
    try:
        await runner.start()
    finally:
        watching.cancel()


async def _watch() -> None:
    while True:
        await asyncio.to_thread(alive.mark_dead, lambda text: print(text, flush=True))
        await asyncio.sleep(EVERY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--ready", type=Path, help="made once every deployment is registered")
    serve(parser.parse_args().ready)
