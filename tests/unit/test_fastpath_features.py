"""The extension builds, loads, and tells what the kernel offers."""

from __future__ import annotations

import pytest

_fastpath = pytest.importorskip("oinetd._fastpath")


def test_features_are_named_and_plausible() -> None:
    features = _fastpath.kernel_features()
    assert set(features) == {
        "pipe_default_bytes",
        "pipe_max_bytes",
        "pipe_raised_bytes",
        "pipe_user_pages_soft",
        "splice_errno",
    }
    assert features["splice_errno"] == 0
    assert features["pipe_default_bytes"] >= 4096
