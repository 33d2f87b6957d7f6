"""Where results lie, and which Prefect server a command talks to: all that is read from the environment."""

import os
import tomllib
from pathlib import Path
from typing import Any


def default_root() -> Path:
    """Return the store where ``run.root`` is null: ``CAPGAP_ARTIFACTS``, else ``artifacts/`` beside prefect.yaml."""
    given = os.environ.get("CAPGAP_ARTIFACTS")
    if given:
        return Path(given).absolute()
    project = Path(__file__).resolve().parents[1]
    return (project if (project / "prefect.yaml").is_file() else Path.cwd()) / "artifacts"


def named_api() -> tuple[str, str] | None:
    """Return the address of the Prefect server that the user named, and where; nothing where none is named.

    Reads what Prefect would read, without importing it: ``PREFECT_API_URL``, then the active profile.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return url, "PREFECT_API_URL"
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    if not path.is_file():
        return None
    held = tomllib.loads(path.read_text(encoding="utf8"))
    active = os.environ.get("PREFECT_PROFILE") or held.get("active", "")
    url = held.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return (url, f"the Prefect profile {active!r}") if url else None


def rooted(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters whose ``run.root`` is an absolute path; what is no object is left for the check to refuse."""
    run = parameters.get("run", {})
    if not isinstance(run, dict) or not isinstance(run.get("root"), str | None):
        return parameters
    root = Path(run["root"]).expanduser().absolute() if run.get("root") else default_root()
    return {**parameters, "run": {**run, "root": str(root)}}
