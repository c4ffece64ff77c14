"""The program of a page that keeps its place in topics."""

import pkgutil

from ..http import Response

_HEADERS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}


async def client_module() -> Response:
    """The ES module `client.js`, which connects a page to topics, again and again, where it was.

    It is a handler: `app.get("/client.js")(client_module)`.
    """
    return Response(pkgutil.get_data(__package__, "client.js"), headers=_HEADERS, media_type="text/javascript")
