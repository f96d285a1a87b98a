"""Headless Chromium, driven over the DevTools protocol: pages are opened, typed into, clicked, asked and pictured.

Nothing here waits a fixed time: a page is waited for until it has loaded, or until a condition holds that it can tell.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
PATIENCE = 60.0  # seconds for what comes in one on a quiet machine; only a defect takes so long
_WORDS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0")
_LISTENING = re.compile(rb"DevTools listening on (ws://\S+)")


class PageError(AssertionError):
    """What a page, or the browser, refused."""


class Browser:
    """A browser with its own profile: ``async with Browser(folder) as browser: page = await browser.open(url)``."""

    def __init__(self, profile: Path):
        self._profile = profile
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def __aenter__(self) -> Self:
        assert CHROMIUM is not None
        self._process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *_WORDS,
            f"--user-data-dir={self._profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        address = None
        while address is None:
            line = await asyncio.wait_for(self._process.stderr.readline(), PATIENCE)
            assert line, "chromium ended before it listened"
            address = _LISTENING.search(line)
        self._silent = asyncio.create_task(self._process.stderr.read())
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(address[1].decode(), max_msg_size=1 << 28)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await self._socket.close()
        await self._session.close()
        self._process.kill()
        await self._process.wait()
        self._silent.cancel()

    async def open(self, url: str, *, width: int = 1280, height: int = 800) -> Page:
        """Open a page in a tab of its own, and wait until it has loaded."""
        target = (await self.send("Target.createTarget", {"url": "about:blank"}))["targetId"]
        session = (await self.send("Target.attachToTarget", {"targetId": target, "flatten": True}))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await page.send(f"{domain}.enable")
        await page.resize(width, height)
        await page.go(url)
        return page

    async def send(self, method: str, parameters: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """Send a command and return its result. Raises PageError where it is refused."""
        self._numbers += 1
        number = self._numbers
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters or {}}
        await self._socket.send_str(json.dumps(message | ({"sessionId": session} if session else {})))
        reply = await asyncio.wait_for(answer, PATIENCE)
        if "error" in reply:
            raise PageError(f"{method}: {reply['error']['message']}")
        return reply.get("result", {})

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                if not (answer := self._answers.pop(said["id"])).done():
                    answer.set_result(said)
            elif (page := self._pages.get(said.get("sessionId", ""))) is not None:
                page.hear(said["method"], said.get("params", {}))


class Page:
    """One page. ``problems`` holds what it complained of: errors of scripts, and what its policy forbade."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session
        self._loaded = asyncio.Event()
        self.problems: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol."""
        return await self._browser.send(method, parameters, self._session)

    def hear(self, method: str, parameters: dict[str, Any]) -> None:
        """Take an event."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])

    async def go(self, url: str) -> None:
        """Go to an address."""
        self._loaded.clear()
        if error := (await self.send("Page.navigate", url=url)).get("errorText"):
            raise PageError(f"{url}: {error}")
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def resize(self, width: int, height: int = 800) -> None:
        """Show it in a window of this size."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def ask(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript; of a promise, what it comes to."""
        told = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise PageError(f"{expression}: {told['exceptionDetails'].get('exception', {}).get('description')}")
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition in JavaScript holds."""
        look = f"new Promise(done => {{ const look = () => ({condition}) ? done(1) : setTimeout(look, 10); look(); }})"
        try:
            await self.ask(look)
        except TimeoutError:
            shown = await self.ask("document.body.innerText")
            raise PageError(f"never came true: {condition}\n{shown[:2000]}") from None

    async def click(self, selector: str, *, leads_on: bool = False) -> None:
        """Click in the middle of an element, as a mouse does. ``leads_on``: and wait for the page that it leads to."""
        box = await self.ask(
            f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect();"
            f"return [b.x + b.width / 2, b.y + b.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        self._loaded.clear()
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        if leads_on:
            await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def type(self, selector: str, text: str) -> None:
        """Put the cursor into a field and type."""
        await self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.send("Input.insertText", text=text)

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        await self.ask(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(value)}")

    async def text(self, selector: str = "body") -> str:
        """Return the text that a reader sees of an element."""
        return str(await self.ask(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that fit."""
        shown = await self.ask(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")
        return list(shown)

    async def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window: more than none has to be scrolled."""
        return int(await self.ask("document.documentElement.scrollWidth - window.innerWidth"))

    async def picture(self, file: Path) -> None:
        """Write a picture of the whole page."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
