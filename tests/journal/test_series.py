"""The vocabulary that readers fill and rules read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from surefoot.journal.series import Column, LoggedRun, Message, Role


def column(name, role):
    return Column(name, role, np.zeros(2), np.arange(2.0), np.array([1, 2]))


def test_columns_of_a_role_come_in_the_logs_order():
    parts = [column("b", Role.TERM), column("loss", Role.LOSS), column("a", Role.TERM)]
    run = LoggedRun("x.log", "text", tuple(parts))
    assert [c.name for c in run.of(Role.TERM)] == ["b", "a"]
    assert run.of(Role.METRIC) == ()


def test_what_a_reader_need_not_say_says_that_it_is_unknown():
    one = column("loss", Role.LOSS)
    assert (one.per, one.better, one.group, one.unit, one.section) == ("step", "", "", "", "")
    message = Message("overflow", 3, "overflow")
    assert np.isnan(message.step)
    assert message.values == {}


def test_reading_logs_loads_no_torch():
    code = "import sys, surefoot.journal.foreign; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
