"""The wait for the first address of a name."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from oinetd import Settings
from oinetd.net.poller import Poller
from oinetd.upstream.name_wait import wait_for_names
from tests.forwarding import in_one_loop


class Unresolved:
    resolved = False

    async def wait_resolved(self, timeout_s: float) -> bool:
        await asyncio.sleep(timeout_s)
        return False


@in_one_loop
async def test_a_session_that_ends_before_its_name_is_resolved_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poller = Poller(asyncio.get_running_loop())
    names: Any = (Unresolved(), Unresolved())
    waiting = asyncio.ensure_future(wait_for_names(poller, names, Settings(connect_timeout_s=60.0), None))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    for _ in range(3):
        await asyncio.sleep(0)
    del waiting
    gc.collect()
    poller.close()
    assert "Traceback" not in caplog.text, caplog.text
    assert not caplog.records
