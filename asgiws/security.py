"""Who a client says it is: credentials as dependencies, of WebSockets and requests alike.

A helper is an object to depend on: `sent: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]`. It reads the
credentials and refuses a client without. Whether they are right is for the application to say, with
`constant_time_compare` where it knows the secret itself.

| helper | where the client puts the credentials | can a page send them with a WebSocket? |
|---|---|---|
| `HTTPBearer`, `OAuth2PasswordBearer` | `Authorization: Bearer <token>` | no |
| `HTTPBasic` | `Authorization: Basic <base64>` | the browser does by itself |
| `APIKeyHeader` | a header of your own | no |
| `APIKeyQuery` | the query string, which servers write to their access logs | yes |
| `APIKeyCookie` | a cookie | the browser does by itself |
| `SubprotocolToken` | an entry of `Sec-WebSocket-Protocol` | yes |
| `FirstMessageToken` | the first message after accept | yes |

No text, log or repr of theirs shows a credential. `OriginPolicy` is the check that `App(allowed_origins=...)` makes.
"""

from .credentials import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBasicCredentials,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityBase,
    constant_time_compare,
)
from .origins import OriginPolicy, parse_origin
from .tokens import FirstMessageToken, SubprotocolToken

__all__ = [
    "APIKeyCookie",
    "APIKeyHeader",
    "APIKeyQuery",
    "FirstMessageToken",
    "HTTPAuthorizationCredentials",
    "HTTPBasic",
    "HTTPBasicCredentials",
    "HTTPBearer",
    "OAuth2PasswordBearer",
    "OriginPolicy",
    "SecurityBase",
    "SubprotocolToken",
    "constant_time_compare",
    "parse_origin",
]
