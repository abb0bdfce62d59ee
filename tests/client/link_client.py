"""An agent in a thread of its own, as a test sees it; and tasks for it as a server would make them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from flwr.app import ConfigRecord, Message, RecordDict

from client.agent import Agent, Place
from client.dialing import Backoff, GrpcDialer
from client.notes import Notes, Status, read_status
from client.outbox import Outbox
from client.running import Runner
from security.errors import UsageError
from security.frames import ACCEPTED, Offer
from shared_models.flower_messages import act_as_server, header_to_bytes, message_from_bytes, payload_to_bytes
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import CONFIG, PLAN_DIGEST, ROUND, RUN
from tests.client.link_server import PATIENCE, LinkServer

APP = "tests.client.link_app:app"


@dataclass
class Verdict:
    code: int = ACCEPTED
    reason: str = ""
    plan: Plan | None = None


class Owner:
    """Says to every offer what a test has it say; `asked` are the plans that it was asked about."""

    def __init__(self, plan: Plan) -> None:
        self.verdict = Verdict(plan=plan)
        self.approved = False
        self.allowing = True
        self.asked: list[str] = []
        self.seen: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    def consider(self, plan_text: str, digest: str) -> Verdict:
        self.asked.append(plan_text)
        if self.error is not None:
            raise self.error
        return self.verdict

    def is_approved(self, digest: str) -> bool:
        return self.approved

    def allows(self, plan: Plan, fields: Collection[str]) -> bool:
        self.seen.append(tuple(fields))
        return self.allowing


class Client:
    """A site's client at work. `lines` is what its terminal shows.

    Its attributes may be changed before `start`.
    """

    def __init__(self, folder: Path, server: LinkServer, plan: Plan) -> None:
        self.folder = folder
        self.server = server
        self.owner = Owner(plan)
        self.lines: list[str] = []
        self.why: str | None = None  # work has to wait
        self.look_again = 0.05
        self.until_done = False
        self.every = 0.0
        self.largest = 1 << 24
        self.backoff = Backoff(first=0.01, longest=0.05)
        self.explanation: str | None = None
        self.explained = 0
        self.app = APP
        self.credentials: Callable[[], grpc.ChannelCredentials] = grpc.local_channel_credentials
        self.options: list[tuple[str, Any]] = []
        self.clock: Callable[[], float] | None = None
        self.code: int | None = None
        self.error: BaseException | None = None
        self.outbox: Outbox

    def start(self) -> Client:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def stop(self) -> None:
        """As the first signal does."""
        self._loop.call_soon_threadsafe(self._agent.stop)

    def end(self) -> int | None:
        """Stop, and wait until it is over; the exit code."""
        self.stop()
        return self.wait()

    def wait(self) -> int | None:
        """Wait until it is over by itself; the exit code."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the client goes on"
        if self.error is not None:
            raise self.error
        return self.code

    @property
    def status(self) -> Status:
        found = read_status(self.folder / "status.json")
        assert found is not None
        return found

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "client.log").read_text().splitlines()]

    def _run(self) -> None:
        try:
            self.code = asyncio.run(self._live())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    async def _live(self) -> int:
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox.open(self.folder / "outbox.sqlite")
        notes = Notes(
            status=self.folder / "status.json",
            log=self.folder / "client.log",
            server=self.server.address,
            say=self.lines.append,
            verbose=True,
        )
        more: dict[str, Any] = {} if self.clock is None else {"clock": self.clock}
        self._agent = Agent(
            Place(
                site="berlin",
                federation="pilot",
                server=self.server.address,
                home=self.folder,
                software="1.0",
                largest=self.largest,
            ),
            dial=GrpcDialer(self.server.address, self.credentials, options=self.options),
            explain=self._explain,
            owner=self.owner,
            schedule=lambda: (self.why, self.look_again),
            runner=Runner("berlin", app=self.app),
            outbox=self.outbox,
            notes=notes,
            until_done=self.until_done,
            every=self.every,
            backoff=self.backoff,
            **more,
        )
        self._ready.set()
        try:
            return await self._agent.run()
        finally:
            notes.close()
            self.outbox.close()

    def _explain(self) -> str | None:
        self.explained += 1
        return self.explanation


def task_id(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def offer_of(plan: Plan, run: str = "ab") -> Offer:
    return Offer(run=run, plan=write_plan(plan), digest=plan.digest())


def task_of(
    plan: Plan, number: int = 1, *, kind: str = "train", name: str | None = None, content: RecordDict | None = None
) -> tuple[str, bytes, bytes]:
    """Id, header and payload of a task."""
    act_as_server(1)
    identity = task_id(name or f"{kind} {number}")
    if content is None:
        content = RecordDict({CONFIG: ConfigRecord({ROUND: number, PLAN_DIGEST: plan.digest(), RUN: "ab"})})
    message = Message(content, 7, kind, group_id=str(number))
    message.metadata.__dict__["_message_id"] = identity
    return identity, header_to_bytes(message.metadata), payload_to_bytes(message)


def read(header: bytes, payload: bytes) -> Message:
    """A reply."""
    return message_from_bytes(header, payload)


def refuse_credentials() -> grpc.ChannelCredentials:
    raise UsageError("keys/tls.key: no such file")
