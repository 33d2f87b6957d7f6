"""Two processes that want the same stage at the same moment: it is made once, and both get it."""

import json
import subprocess
import sys
from pathlib import Path

import builders

REPO = Path(__file__).resolve().parents[2]
WANTS = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import builders
from capgap_core.records import Reference

root, me, other = Path(sys.argv[1]), *sys.argv[2:]
candidates = Reference.model_validate_json((root / "candidates.json").read_text())
for number in range(10):
    (root / f"{me}{number}").touch()
    while not (root / f"{other}{number}").exists():  # both begin together
        time.sleep(0)
    recipe = builders.TRADEOFF.model_copy(update={"lam": number / 10})
    print(builders.make_tradeoff(root, candidates, recipe).model_dump_json(), flush=True)
"""


def test_each_stage_is_made_once_and_both_get_it(tmp_path: Path) -> None:
    (tmp_path / "candidates.json").write_text(builders.scored(tmp_path).model_dump_json())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WANTS, str(tmp_path), me, other], cwd=REPO, stdout=-1, stderr=-1, text=True
        )
        for me, other in (("a", "b"), ("b", "a"))
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ours, theirs = ([json.loads(line) for line in out.splitlines()] for out, _ in said)
    assert len(ours) == len(theirs) == 10
    for a, b in zip(ours, theirs, strict=True):
        assert [a["reused"], b["reused"]].count(False) == 1
        assert {k: a[k] for k in ("path", "digest", "summary")} == {k: b[k] for k in ("path", "digest", "summary")}
        assert json.loads(Path(a["path"], "record.json").read_text())["attempts"] == 1
