"""A run that stands still says so, in its journal too."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from surefoot.recipes.run_folder import JOURNAL
from surefoot.recipes.session import Session


def test_a_stall_is_told_and_journalled_and_the_watch_ends_with_the_session(tmp_path: Path):
    told: list[str] = []
    before = threading.active_count()
    with Session(tmp_path, recipe="refdet", run={}, say=told.append) as session:
        watch = session.stalls
        assert watch.running
        watch.step()
        now = watch._clock()
        watch._clock = lambda: now + 3600.0
        stall = watch.look()
        assert stall is not None
        watch._on_stall(stall)
    assert threading.active_count() == before
    assert told[0].startswith("  no step for 60 minutes. The loop waits in ")
    assert told[0].endswith("; the journal has all stacks")
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    (stalled,) = (line for line in lines if line["kind"] == "stalled")
    assert stalled["usual"] is None
    assert "Thread surefoot stall watch (" in stalled["stacks"]
    assert "test_stalls.py" in stalled["waits_in"]
