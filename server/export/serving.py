"""An exported model behind HTTP: one batch endpoint, a health check, and the questions' form as an OpenAPI page.

It answers on the address that it is given, 127.0.0.1 unless told otherwise, without encryption or sign-in: put a proxy
that has both in front of it. Questions are neither kept nor logged.
"""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from security.errors import UsageError
from server.export.formats import FILES, onnx_session
from server.export.inputs import Inputs
from shared_models.plan import Plan

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger(__name__)

MOST_BYTES: Final = 16 << 20
"""Of a request's body."""
_DIGITS: Final = 12

MOST_AT_ONCE: Final = 256
"""Questions of one request."""


@dataclass(frozen=True)
class Predictor:
    """A model that answers.

    Attributes:
        plan: whose.
        inputs: the form of a question.
        session: of onnxruntime.
    """

    plan: Plan
    inputs: Inputs
    session: Any

    @classmethod
    def open(cls, plan: Plan, folder: Path) -> Predictor:
        """The model that `veil export` has written to a folder.

        Raises:
            UsageError: there is none, it is of another plan's run, or onnxruntime isn't installed.
        """
        path = folder / FILES["onnx"]
        if not path.is_file():
            raise UsageError(f"{path}: isn't there; write it first: veil export RUN")
        if _plan_of(folder) not in (None, plan.digest()):
            raise UsageError(f"{path}: is of another plan's run; export this run's model there, or serve that run")
        return cls(plan, Inputs.of(plan), onnx_session(path))

    def answers(self, questions: list[Any]) -> list[dict[str, Any]]:
        """For each question the class, and the probability of each; of a language model, those of the next token.

        Raises:
            UsageError: a question isn't as the data's card says.
        """
        x = self.inputs.encode(questions)
        logits: npt.NDArray[np.float64] = np.asarray(self.session.run(None, {"inputs": x})[0], dtype=np.float64)
        if logits.ndim > 2:
            last = np.maximum((x != 0).cumsum(1).argmax(1), 0)
            logits = logits[np.arange(len(x)), last]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        classes = self.inputs.classes
        return [
            {
                "class": classes[int(row.argmax())],
                "probabilities": {name: float(value) for name, value in zip(classes, row, strict=True)},
            }
            for row in probabilities
        ]


def _plan_of(folder: Path) -> str | None:
    """Digest of the plan that an exported model is of; None where it isn't told."""
    try:
        found = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("plan_digest") if isinstance(found, dict) else None


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: on one that is free.

    Raises:
        UsageError: it can't.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: can't listen there ({error.strerror}); choose another address or port"
        ) from error
    return found


def service(predictor: Predictor) -> FastAPI:
    """The web application.

    Raises:
        UsageError: FastAPI isn't installed.
    """
    try:
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse
        from pydantic import BaseModel, ConfigDict, Field
    except ImportError as error:
        raise UsageError("veil serve: needs fastapi and uvicorn; pip install 'veil-fl[serve]'") from error

    class Questions(BaseModel):
        """What is asked."""

        model_config = ConfigDict(extra="forbid")
        inputs: list[Any] = Field(
            min_length=1,
            max_length=MOST_AT_ONCE,
            description=_described(predictor.inputs),
            examples=[_example(predictor)],
        )

    class Answer(BaseModel):
        """To one of them."""

        model_config = ConfigDict(populate_by_name=True)
        guess: str = Field(alias="class", description="The likeliest class.")
        probabilities: dict[str, float] = Field(description="Of each class.")

    class Answers(BaseModel):
        """One for each question, in their order."""

        outputs: list[Answer]

    class Bounded:
        """Refuses a body that doesn't say its length, or is too long, before it is read."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
                told = dict(scope["headers"]).get(b"content-length", b"")
                length = int(told) if told.isdigit() and len(told) < _DIGITS else None
                if length is None or length > MOST_BYTES:
                    status = 411 if length is None else 413
                    detail = f"a body says its length, and has at most {MOST_BYTES} bytes"
                    await JSONResponse(status_code=status, content={"detail": detail})(scope, receive, send)
                    return
            await self.inner(scope, receive, send)

    app = FastAPI(title=f"Veil: {predictor.plan.name}", docs_url="/docs", redoc_url=None)

    app.add_middleware(Bounded)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok", "plan": predictor.plan.digest()}

    def predict(questions: Any) -> Any:
        """Answer a batch of questions."""
        try:
            return {"outputs": predictor.answers(questions.inputs)}
        except UsageError as error:
            return JSONResponse(status_code=422, content={"detail": str(error)})

    @app.exception_handler(RequestValidationError)
    def refused(_: Any, error: RequestValidationError) -> JSONResponse:
        # Its own text would repeat what was sent, and so would the place of a key that is not known.
        first = error.errors()[0]
        where = "inputs" if "inputs" in first["loc"] else "body"
        return JSONResponse(status_code=422, content={"detail": f"{where}: {first['msg']}"})

    @app.middleware("http")
    async def failed(request: Any, answer: Any) -> Any:
        # A traceback in the log could hold what was asked.
        try:
            return await answer(request)
        except Exception as error:
            _log.error("a question was not answered (%s)", type(error).__name__)
            return JSONResponse(status_code=500, content={"detail": "the service failed on this request"})

    # FastAPI looks annotations that are texts up in the module, where this class isn't.
    predict.__annotations__ = {"questions": Questions, "return": Any}
    refusal = {422: {"description": "A question isn't as it should be."}}
    app.post("/predict", response_model=Answers, responses=refusal)(predict)  # type: ignore[arg-type]
    return app


def _described(inputs: Inputs) -> str:
    if inputs.kind == "text":
        return "Texts."
    if inputs.kind == "table":
        return f"Records, each with a value or null for: {', '.join(inputs.card.columns)}."
    return f"Numbers in nested lists of shape {list(inputs.shape)}, as the data has them before it is normalised."


def _example(predictor: Predictor) -> list[Any]:
    inputs = predictor.inputs
    if inputs.kind == "text":
        return ["a text"]
    if inputs.kind == "table":
        return [
            {
                name: column.values[0] if column.kind == "categorical" else (column.low + column.high) / 2
                for name, column in inputs.card.columns.items()
            }
        ]
    return [np.zeros(inputs.shape).tolist()]
