"""What ``capgap up`` does where a process that it has started ends by itself."""

import subprocess
import sys
import time

from flows import servers, up


def child(seconds, log):
    return servers.Child([sys.executable, "-c", f"import time; time.sleep({seconds})"], {}, log)


def test_a_server_that_ends_by_itself_is_started_again_and_what_serves_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(up, "SOON", 0.0)
    said, begun = [], []

    def again():
        begun.append(child(600, tmp_path / "server.log"))
        return begun[-1]

    server = up.Kept(child(0, tmp_path / "server.log"), again)
    serving = up.Kept(child(3, tmp_path / "serve.log"))
    try:
        assert up._watch([server, serving], said.append) == 1  # by what serves, which nobody begins again
        assert len(begun) == 1
        assert server.child is begun[0]
        assert begun[0].process.poll() is None
        assert ["started again" in line for line in said] == [False, True, False]
    finally:
        server.child.stop()
        serving.child.stop()


def test_one_that_ends_as_soon_as_it_has_begun_is_not_started_for_ever(tmp_path):
    begun = []
    kept = up.Kept(child(0, tmp_path / "log"), lambda: begun.append(1))
    kept.child.process.wait()
    assert not up._revived(kept)
    assert begun == []
    kept.since = time.monotonic() - up.SOON - 1
    assert not up._revived(kept)  # its port was taken meanwhile
    assert begun == [1]
    assert isinstance(kept.child.process, subprocess.Popen)
