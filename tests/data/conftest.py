"""A small data set, written once, and a copy of it that a test may break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from surefoot.data import WorldConfig, write_aeroeyes


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """Five videos of 24 frames of 96 px. Not to be changed."""
    return write_aeroeyes(
        tmp_path_factory.mktemp("aeroeyes") / "set",
        videos=5,
        frames=24,
        size=96,
        seed=3,
        world=WorldConfig(distractors=3, object_px=(18, 30), grounds=3),
    )


@pytest.fixture
def broken(written, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(written, tmp_path / "set")
