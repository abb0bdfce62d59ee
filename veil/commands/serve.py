"""`veil serve`: an exported model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    run: Annotated[Path, typer.Argument(help="A run's folder, with what 'veil export' wrote.", metavar="RUN")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8000,
    folder: Annotated[Path | None, typer.Option(help="Where the exported model lies [default: RUN/export].")] = None,
) -> None:
    """Answer questions over HTTP: POST /predict, GET /health, and /docs for the form of a question.

    There is no encryption and no sign-in: put a proxy that has both in front of it.
    """
    from security.errors import UsageError
    from server.export.export import FOLDER
    from server.export.serving import Predictor, listening, service
    from server.run_folder import RunFolder

    predictor = Predictor.open(RunFolder(run).read_plan(), folder or run / FOLDER)
    app = service(predictor)
    try:
        import uvicorn
    except ImportError as error:
        raise UsageError("veil serve: needs uvicorn; pip install 'veil-fl[serve]'") from error
    with listening(host, port) as door:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{door.getsockname()[1]}/docs  (ends with Ctrl-C)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[door])
