"""The application that real servers run to show how tokens travel."""

from typing import Annotated

from asgiws import App, Depends, HTTPException, WebSocket
from asgiws.security import (
    FirstMessageToken,
    HTTPAuthorizationCredentials,
    HTTPBearer,
    SubprotocolToken,
    constant_time_compare,
)

TOKEN = "t0pSecretT0ken-é€😀"

app = App(allowed_origins=["https://good.example"])


def check(token: str) -> str:
    """The user of a token."""
    if not constant_time_compare(token, TOKEN):
        raise HTTPException(403, "who is that?")
    return "ann"


def by_subprotocol(token: Annotated[str, Depends(SubprotocolToken())]) -> str:
    """The user whose token stands among the subprotocols."""
    return check(token)


def by_first_message(token: Annotated[str, Depends(FirstMessageToken(subprotocols=["chat.v2", "chat.v1"]))]) -> str:
    """The user whose token is the first message."""
    return check(token)


def by_bearer(sent: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer(realm="chat"))]) -> str:
    """The user whose token stands in a header."""
    return "ann" if constant_time_compare(sent.credentials, "t0pSecretT0ken") else check("")


@app.websocket("/subprotocol")
async def subprotocol(ws: WebSocket, user: Annotated[str, Depends(by_subprotocol)]) -> None:
    """What is left of the offer."""
    await ws.accept("chat.v1")
    await ws.send_json([user, ws.subprotocols, ws.headers.get("sec-websocket-protocol", "chat.v1")])


@app.websocket("/first-message")
async def first_message(ws: WebSocket, user: Annotated[str, Depends(by_first_message)]) -> None:
    """Answer the messages after the first."""
    async for text in ws.iter_text():
        await ws.send_text(f"{user}: {text}")


@app.websocket("/too-late")
async def too_late(ws: WebSocket, token: Annotated[str, Depends(FirstMessageToken(deadline=0.05))]) -> None:
    """Never asked by a client that says nothing."""
    await ws.send_text("too late")


@app.websocket("/bearer")
async def bearer(ws: WebSocket, user: Annotated[str, Depends(by_bearer)]) -> None:
    """The user."""
    await ws.accept()
    await ws.send_text(user)
