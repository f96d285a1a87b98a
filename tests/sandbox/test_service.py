"""The service and its client over real sockets: every request answered once, whatever is killed in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.file import SandboxSettings
from nemo_openmath.sandbox import Execution, Limits, SandboxError, Status
from nemo_openmath.sandbox.local import LocalSession
from nemo_openmath.sandbox.service import RemoteSandbox, SandboxService, ServiceSettings
from nemo_openmath.sandbox.service.client import RemoteSession
from nemo_openmath.sandbox.service.openapi import ROUTES
from tests.sandbox.waiting import AMPLE, HELD, begun, time_is_over
from tests.support.waiting import until

SETTINGS = ServiceSettings(port=0, packages=(), workers=2)
NAME = "0123456789abcdef" * 2


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[tuple[SandboxService, RemoteSandbox]]:
    async with SandboxService(replace(SETTINGS, **changes)) as service, RemoteSandbox(service.url) as sandbox:
        yield service, sandbox


class Ticks:
    """A clock that the test moves."""

    time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class Wire:
    """Requests by hand: (status, headers, body)."""

    def __init__(self, service: SandboxService | str) -> None:
        self.url = service if isinstance(service, str) else service.url

    async def __call__(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, json=body, headers=headers) as response,
        ):
            text = await response.text()
            return response.status, response.headers, json.loads(text) if text[:1] == "{" else text

    async def execute(self, number: int, code: str, **more: object) -> tuple[int, Any, Any]:
        return await self("POST", f"/v1/sessions/{NAME}/executions", {"number": number, "code": code, **more})


def inside(service: SandboxService, session: RemoteSession) -> LocalSession:
    """The service's end of a session."""
    return service._table._held[session._path.rpartition("/")[2]].opening.result()


async def test_a_remote_session_is_a_session(tmp_path: Path) -> None:
    async with serving(socket=tmp_path / "s") as (service, sandbox):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        async with await sandbox.session(AMPLE) as one, await sandbox.session(AMPLE) as other:
            await one.execute("x = 20\ndef f(): return x + 1")
            await other.execute("x = 'other'")
            result = await one.execute("print('ünï\U0001f600'); f()")
            assert replace(result, duration_s=0) == Execution(Status.COMPLETED, "ünï\U0001f600\n21\n", "", 0)
            assert "ZeroDivisionError" in (await one.execute("1 / 0")).stderr
            short = await one.execute("while True: pass", replace(AMPLE, wall_s=0.1))  # not those of its session
            assert short.status == Status.TIMEOUT
            await one.execute("x = 20")  # where the interrupt came late
            slow = await begun(one, "print('so far')\nwhile True: pass", inside(service, one))
            time_is_over(inside(service, one))
            assert ((await slow).status, (await slow).stdout) == (Status.TIMEOUT, "so far\n")
            await one.execute("x = 20")
            await one.reset()
            assert (await one.execute("'x' in globals()")).stdout == "False\n"
            assert (await other.execute("x")).stdout == "'other'\n"
            assert "more than" in (await one.execute("#" * (2 << 20))).stderr
            assert (await one.execute("print('\ud800')")).status == Status.COMPLETED
        with pytest.raises(UserError, match="another service does"):  # and it leaves the socket where it is
            await SandboxService(replace(SETTINGS, socket=tmp_path / "s")).start()
        assert (tmp_path / "s").is_socket()
        with pytest.raises(SandboxError, match="closed"):
            await one.execute("1")
        assert service._table.sessions == 0
    assert not (tmp_path / "s").exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    async with serving(socket=tmp_path / "s") as (_, sandbox), await sandbox.session() as session:
        assert (await session.execute("1 + 1")).stdout == "2\n"


async def test_a_number_runs_once() -> None:
    async with serving() as (service, _):
        ask = Wire(service)
        state = await ask("PUT", f"/v1/sessions/{NAME}", {})
        assert (await ask("PUT", f"/v1/sessions/{NAME}", {}))[2] == state[2]
        assert state[2]["limits"]["wall_s"] == 10
        assert (await ask("PUT", f"/v1/sessions/{NAME}", {"limits": {"wall_s": 1}}))[0] == 409
        await ask.execute(1, "n = 0")
        code = "import time; time.sleep(0.3); n += 1; n"
        twins = await asyncio.gather(*(ask.execute(2, code) for _ in range(3)))
        assert [body["stdout"] for _, _, body in [*twins, await ask.execute(2, code)]] == ["1\n"] * 4
        assert (await ask.execute(3, "n"))[2]["stdout"] == "1\n"
        await ask.execute(4, "n")
        status, _, body = await ask.execute(2, code)  # its result is forgotten by now
        assert (status, body["reason"]) == (410, "number")
        busy = asyncio.create_task(ask.execute(5, "while True: pass", limits={"wall_s": 300, "cpu_s": 300}))
        await until(lambda: service._table.executions)
        assert (await ask.execute(6, "n"))[2]["reason"] == "busy"
        assert (await ask("DELETE", f"/v1/sessions/{NAME}/executions/5"))[0] == 204
        assert (await busy)[2]["reason"] == "cancelled"
        await ask("DELETE", f"/v1/sessions/{NAME}/executions/7")  # overtook its request
        assert (await ask.execute(7, "n"))[0] == 410


async def test_an_answer_lost_on_the_way_is_asked_for_again() -> None:
    """A proxy that forwards every request and cuts the connection instead of the first answer to each."""
    async with serving() as (service, _):
        port, cuts = int(service.url.rpartition(":")[2]), 0

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal cuts
            upstream, down = await asyncio.open_connection("127.0.0.1", port)
            pump = asyncio.create_task(_pump(reader, down))
            answer = await upstream.read(65536)
            if answer and cuts % 2 == 0:
                cuts += 1
            elif answer:
                cuts += 1
                writer.write(answer)
                await writer.drain()
            pump.cancel()
            writer.close()
            down.close()

        proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        sandbox = RemoteSandbox(url)
        session = await sandbox.session()
        await session.execute("n = 0")
        results = [(await session.execute("n += 1; n")).stdout for _ in range(5)]
        assert results == [f"{n}\n" for n in range(1, 6)]
        assert cuts >= 14
        await sandbox.close()
        proxy.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


async def test_back_pressure() -> None:
    async with serving(workers=1, queue=1, sessions=3) as (service, sandbox):
        ask = Wire(service)
        sessions = [await sandbox.session(AMPLE) for _ in range(2)]
        await ask("PUT", f"/v1/sessions/{NAME}", {})
        status, headers, body = await ask("PUT", f"/v1/sessions/{'f' * 32}", {})
        assert (status, body["reason"], headers["Retry-After"]) == (429, "sessions", "1")
        work = [asyncio.create_task(s.execute(HELD + "7")) for s in sessions]
        await until(lambda: service._table.executions == 2)
        status, headers, body = await ask.execute(1, "1")
        assert (status, body["reason"]) == (429, "queue")
        assert int(headers["Retry-After"]) >= 1
        assert body["retry_after_s"] > 0
        patient = RemoteSandbox(service.url, patience_s=0)
        with pytest.raises(SandboxError, match="sessions are taken") as error:
            await patient.session()
        assert error.value.retryable
        await patient.close()
        for session in sessions:
            Path(inside(service, session)._process.folder, "go").touch()
        assert [r.stdout for r in await asyncio.gather(*work)] == ["held\n7\n"] * 2
        assert (await ask.execute(1, "1"))[2]["stdout"] == "1\n"  # the refused number had not been used up


async def test_cancelling_kills_what_runs() -> None:
    async with serving() as (service, sandbox), await sandbox.session(AMPLE) as session:
        await session.execute("x = 1")
        local = inside(service, session)
        pid = local._process._pid
        task = await begun(session, "print('running')\nwhile True: pass", local)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service._table.executions == 0
        await until(lambda: not psutil.pid_exists(pid))
        after = await session.execute("'x' in globals()")
        assert (after.stdout, after.state_lost) == ("False\n", True)


async def test_idle_sessions_expire_and_say_so() -> None:
    clock = Ticks()
    async with (
        SandboxService(replace(SETTINGS, idle_s=60), clock) as service,
        RemoteSandbox(service.url, limits=AMPLE) as sandbox,
        await sandbox.session() as session,
    ):
        await session.execute("x = 1")
        running = await begun(session, HELD + "x", inside(service, session))
        clock.time += 1000
        await service._table.sweep()
        assert service._table.sessions == 1  # working is not idling
        Path(inside(service, session)._process.folder, "go").touch()
        assert (await running).stdout == "held\n1\n"
        clock.time += 59
        await service._table.sweep()
        assert service._table.sessions == 1
        clock.time += 2
        await until(lambda: service._table.sessions == 0)  # the service looks by itself
        after = await session.execute("'x' in globals()")
        assert (after.status, after.stdout, after.state_lost) == (Status.COMPLETED, "False\n", True)
        assert "earlier blocks are lost" in after.stderr
        await until(lambda: 'sessions_ended_total{why="expired"} 1' in service._metrics.render({}))


async def test_a_killed_zygote_is_replaced() -> None:
    async with serving() as (service, sandbox), await sandbox.session(AMPLE) as busy:
        running = await begun(busy, "print('running')\nwhile True: pass", inside(service, busy))
        os.kill(service._sandbox._zygote._popen.pid, signal.SIGKILL)
        killed = await running
        assert (killed.status, killed.state_lost) == (Status.KILLED, True)
        await until(lambda: service._sandbox.alive)  # without a request
        assert (await Wire(service)("GET", "/health"))[0] == 200
        assert (await busy.execute("1 + 1")).stdout == "2\n"
        assert "zygote_starts 2" in (await Wire(service)("GET", "/metrics"))[2]


def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "sandbox", "serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stderr is not None
    return process, json.loads(process.stderr.readline())["url"]


async def health(url: str, **expected: object) -> None:
    """Wait until the service at ``url`` says so of itself."""
    async with asyncio.timeout(120):
        while not (await Wire(url)("GET", "/health"))[2].items() >= expected.items():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_command_drains_at_sigterm_and_heals_after_kill() -> None:
    process, url = await asyncio.to_thread(start, "--port", "0")
    family = psutil.Process(process.pid).children(recursive=True)
    sandbox = RemoteSandbox(url)
    idle, busy = await sandbox.session(AMPLE), await sandbox.session(AMPLE)
    await idle.execute("x = 1")
    running = asyncio.create_task(busy.execute("while True: pass"))
    await health(url, executions=1)
    process.kill()
    process.wait()
    await until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    process, again = await asyncio.to_thread(start, "--port", url.rpartition(":")[2], "--drain", "300")
    assert again == url
    killed = await running
    assert (killed.status, killed.state_lost, "killed" in killed.stderr) == (Status.KILLED, True, True)
    after = await idle.execute("'x' in globals()")
    assert (after.status, after.stdout, after.state_lost) == (Status.COMPLETED, "False\n", True)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b"GET /health HTTP/1.1\r\n\r\n")  # without a host: aiohttp's own log has the trace
    assert b"400" in await reader.readline()
    writer.close()
    folder = Path((await busy.execute("import os; print(os.getcwd())")).stdout.strip())
    last = asyncio.create_task(busy.execute(HELD + "'done'"))
    await health(url, executions=1)
    process.send_signal(signal.SIGTERM)
    await health(url, status="draining")
    impatient = RemoteSandbox(url, patience_s=0)
    with pytest.raises(SandboxError, match="going down"):
        await impatient.session()
    await impatient.close()
    (folder / "go").touch()
    assert (await last).stdout == "held\n'done'\n"
    assert await asyncio.to_thread(process.wait, 300) == 0
    assert process.stderr is not None
    events = [json.loads(line)["event"] for line in process.stderr]  # all of it is JSON
    assert "Error handling request from 127.0.0.1" in events
    assert events[events.index("draining") :].count("drained") == 1
    await asyncio.wait_for(sandbox.close(), 300)


async def test_a_token_is_needed_where_others_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="OPENMATH_SANDBOX_TOKEN"):
        SandboxService(replace(SETTINGS, host="0.0.0.0"))
    monkeypatch.setenv("OPENMATH_SANDBOX_TOKEN", "short")
    with pytest.raises(UserError, match="too short"):
        SandboxService(SETTINGS)
    monkeypatch.setenv("OPENMATH_SANDBOX_TOKEN", "a-long-enough-token")
    async with SandboxService(SETTINGS) as service:
        ask = Wire(service)
        for route in ROUTES:
            path = route.path.format(session=NAME, number=1)
            assert (await ask(route.method, path))[0] == (200 if path == "/health" else 401), path
        with pytest.raises(UserError, match="token"):
            await RemoteSandbox(service.url).start()
        async with RemoteSandbox(service.url, "OPENMATH_SANDBOX_TOKEN") as sandbox, await sandbox.session() as session:
            assert (await session.execute("1 + 1")).stdout == "2\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "{used}"], "port {used} of 127.0.0.1 is in use by another program"),
        (["--port", "99999"], "port 99999 is out of range"),
        (["--port", "-1"], "port -1 is out of range"),
        (["--token-env", "UNSET_TOKEN"], "UNSET_TOKEN is not set"),
        (["--socket", "{folder}/none/s"], "cannot listen on {folder}/none/s: no such folder"),
        (["--workers", "0"], "workers=0"),
    ],
)
def test_a_service_that_cannot_be_started_says_why_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"used": taken.getsockname()[1], "folder": tmp_path}
        assert run(["sandbox", "serve", *(word.format(**names) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"openmath: {said.format(**names)}")


async def test_a_service_that_is_no_service_or_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_TOKEN", "line\nbreak")
    with pytest.raises(UserError, match="the token in ODD_TOKEN is not printable"):
        RemoteSandbox("http://127.0.0.1:1", "ODD_TOKEN")
    for url in ("http://127.0.0.1:1", "unix:/none/here", "http://no.such.host.invalid:8700"):
        sandbox = RemoteSandbox(url, patience_s=0.01)
        with pytest.raises(UserError, match=rf"no sandbox service at {url}: .*cannot connect.*; start one with"):
            await sandbox.start()
        await sandbox.close()
    async with serving() as (service, _):
        other = RemoteSandbox(f"{service.url}/elsewhere")
        with pytest.raises(UserError, match="it does not answer as a sandbox service"):
            await other.start()
        await other.close()


async def test_what_is_refused() -> None:
    async with serving() as (service, sandbox):
        ask = Wire(service)
        assert (await ask("GET", "/v1", Host="evil.example"))[0] == 401  # a name rebound to loopback
        assert (await ask.execute(1, "1"))[0] == 404
        await ask("PUT", f"/v1/sessions/{NAME}", {})
        for number, code, more in [
            (0, "1", {}),
            (True, "1", {}),
            (10**18, "1", {}),
            (10**30, "1", {}),
            (1, 5, {}),
            (1, "1", {"x": 1}),
            (1, "1", {"limits": {"wall": 1}}),
            (1, "1", {"limits": {"wall_s": -1}}),
            (1, "1", {"limits": {"wall_s": 1e9}}),
            (1, "1", {"limits": {"wall_s": float("nan")}}),
            (1, "1", {"limits": {"processes": 1}}),
        ]:
            status, _, body = await ask(
                "POST", f"/v1/sessions/{NAME}/executions", {"number": number, "code": code, **more}
            )
            assert (status, body["reason"]) == (400, "request"), (number, code, more)
        assert (await ask("PUT", "/v1/sessions/../../etc", {}))[0] == 404
        assert (await ask("PUT", "/v1/sessions/ABC", {}))[0] == 400
        assert (await ask.execute(1, "x" * (8 << 20)))[0] == 413
        with pytest.raises(UserError, match="memory_mb"):
            await sandbox.session(Limits(memory_mb=10**9))
        assert (await ask.execute(99, "'still there'"))[2]["stdout"] == "'still there'\n"
    absent = RemoteSandbox(service.url, patience_s=0)
    with pytest.raises(UserError, match="no sandbox service"):
        await absent.start()
    await absent.close()


async def test_the_description_is_the_service() -> None:
    async with serving() as (service, _):
        ask = Wire(service)
        document = (await ask("GET", "/openapi.json"))[2]
        described = {(m.upper(), path) for path, operations in document["paths"].items() for m in operations}
        served = {(r.method, r.resource.canonical) for r in service.app().router.routes() if r.method != "HEAD"}
        assert described == served
        schemas = document["components"]["schemas"]
        assert set(schemas["Execution"]["properties"]) == {f.name for f in fields(Execution)}
        assert set(schemas["Limits"]["properties"]) == {f.name for f in fields(Limits)}
        for part in json.dumps(document).split('"$ref": "')[1:]:
            assert part.partition('"')[0].removeprefix("#/components/schemas/") in schemas
        await ask("PUT", f"/v1/sessions/{NAME}", {})
        answers = {"Health": await ask("GET", "/health"), "Execution": await ask.execute(1, "1"),
                   "Description": await ask("GET", "/v1"), "Failure": await ask.execute(1, 2)}  # fmt: skip
        for name, (_, _, body) in answers.items():
            assert set(body) == set(schemas[name]["properties"]), name
        text = (await ask("GET", "/metrics"))[2]
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert samples['openmath_sandbox_executions_total{status="completed"}'] == "1"
        assert samples['openmath_sandbox_execution_seconds_bucket{le="+Inf"}'] == "1"
        assert samples["openmath_sandbox_sessions"] == "1"


def test_recipe_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UserError, match="workers"):
        SandboxSettings(url="http://127.0.0.1:1", workers=2)
    with pytest.raises(UserError, match="token_env"):
        SandboxSettings(token_env="X")


async def test_a_service_without_walls_is_not_used_unless_accepted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (service, _):
        monkeypatch.setattr(type(service._sandbox), "missing_walls", True)
        for use in (RemoteSandbox.start, RemoteSandbox.session):  # also by who never calls start
            trusting = RemoteSandbox(service.url)
            with pytest.raises(UserError, match="lacks a wall"):
                await use(trusting)
            await trusting.close()
        async with RemoteSandbox(service.url, unsafe=True) as sandbox, await sandbox.session() as session:
            assert (await session.execute("1")).unsafe
            assert (await session.execute("#" * (2 << 20))).unsafe
