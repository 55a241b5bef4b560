"""Our own routes under uvicorn: `python asgi_ours.py PORT MODEL=PATH [flags of python -m serve]`."""

import asyncio
import sys

import uvicorn
import uvloop

from serve.app import App
from serve.arguments import parse_arguments
from serve.http.asgi import asgi_app


async def main() -> None:
    """Serve until told to stop."""
    config = parse_arguments(sys.argv[2:])
    app = App(config)
    asgi = asgi_app(
        app.router, config.limits, app.access, on_startup=app.start_models, on_shutdown=app.stop_models
    )  # fmt: skip
    settings = uvicorn.Config(asgi, port=int(sys.argv[1]), log_level="warning", access_log=False, lifespan="on")
    await uvicorn.Server(settings).serve()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
