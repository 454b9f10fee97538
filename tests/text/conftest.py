"""The planted world."""

from __future__ import annotations

import pytest

from tests.text.planted import write_world


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Feature repository with a hidden structure; read it, don't write into it."""
    return write_world(tmp_path_factory.mktemp("planted"), make_model("bert"))
