"""Run the chat: `python -m examples.chat`."""

import os

from examples._serve import arguments, check_broker, serve

if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("--redis", metavar="URL", help="share the rooms of two processes on this server")
    options = parser.parse_args()
    if options.redis:
        check_broker(options.redis)
        os.environ["CHAT_REDIS"] = options.redis  # it is inherited by the processes
    serve("examples.chat.app:app", options=options, workers=2 if options.redis else 1)
