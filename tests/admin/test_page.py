"""The page in a browser: it shows what the API says, and runs nothing that a name says."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.admin.echo import echo_server
from tests.admin.rig import Admin, administered
from tests.forwarding import bound
from tests.peers import dial

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def test_the_page_is_only_where_it_is_asked_for(tmp_path: Path) -> None:
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9\nadmin 127.0.0.1 0\n") as admin:
        assert (await admin.ask("GET", "/", tcp=True))[0] == 404
    async with administered(tmp_path, "127.0.0.1 0 127.0.0.1 9\nadmin 127.0.0.1 0 [page]\n") as admin:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            status, headers, body = await admin.ask("GET", path, tcp=True)
            assert (status, headers["content-type"].startswith(kind)) == (200, True)
            assert "default-src 'self'" in headers["content-security-policy"]
            assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
            assert b"https://" not in body
            assert b"innerHTML" not in body


async def in_browser(admin: Admin, folder: Path) -> str:
    """The document after the page's program has run for a while."""
    assert CHROMIUM is not None
    host, port = admin.tcp
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=4000", "--dump-dom", f"http://{host}:{port}/"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        out, _ = await browser.communicate()
    return out.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
async def test_a_browser_shows_rules_sessions_and_inert_names(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "uvloop" in request.node.name:
        pytest.skip("one loop is enough for a browser")
    evil = "<script>document.title='pwned'</script>\u202e"
    monkeypatch.setattr("oinetd.admin.api.Api._rule", _renamed(evil))
    async with echo_server() as (host, port):
        text = f"127.0.0.1 0 {host} {port} [name=web]\nadmin 127.0.0.1 0 [page]\n"
        async with administered(tmp_path, text) as admin:
            peer = await dial(bound(admin.forwarder))
            await peer.send(b"hello")
            assert await peer.read(5) == b"hello"
            shown = await in_browser(admin, tmp_path)
            peer.close()
    assert "<title>test – oinetd</title>" in shown
    assert '<td data-label="Client">127.0.0.1:' in shown
    assert '<td data-label="Rule">web</td>' in shown
    assert "&lt;script&gt;document.title='pwned'&lt;/script&gt;\\u202e" in shown
    assert 'id="trouble" role="alert" hidden=""' in shown


def _renamed(name: str):  # type: ignore[no-untyped-def]
    from oinetd.admin.api import Api

    rule = Api._rule
    return lambda self, state: {**rule(self, state), "name": name}
