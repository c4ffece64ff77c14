"""The app of the program, which scans while its own module is being imported, or run."""

import json
import sys

from asgiws import App, Router, WebSocket, controller, websocket

runs: list[str] = sys.__dict__.setdefault("runs_of_the_program", [])
runs.append(__name__)


@controller("/own")
class Own:
    """A controller of the module that scans."""

    @websocket("/")
    async def own(self, ws: WebSocket) -> None:
        """Tell who it is."""
        await ws.accept()
        await ws.send_text(type(self).__name__)


router = Router(prefix="/router")


@router.websocket("/")
async def handler(ws: WebSocket) -> None:
    """Accept."""
    await ws.accept()


app = App()
app.scan("tests.scanned.program")

if __name__ == "__main__":
    sys.stdout.write(json.dumps({"runs": runs, "paths": sorted(route.path for route in app.routes)}))
