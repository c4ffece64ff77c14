"""Publish from a program that is no app: a script, a cron job, a worker of a queue.

    python -m examples.publish_from_outside redis://localhost:6379 room:lobby "The canteen is open."

While `python -m examples.chat --redis redis://localhost:6379` runs, all who are in the room "lobby" see it. The script
prints the position that the message has in its topic: it is in the history by then, whoever reads it.

What to look at: `Channels` without an `App` is opened by `async with`. It is given the same `topics` as those of the
app, since it is the publisher who says how much of a topic is kept. And the message is the app's own `Said`, which is
how a page of the chat knows what to do with it.
"""

import argparse
import datetime as dt
import sys

import anyio

from asgiws.channels import Channels, ChannelsError

from ._serve import need
from .chat.app import TOPICS, Said


async def publish(url: str, topic: str, message: Said) -> str:
    """Publish a message; its position."""
    async with Channels(url, topics=TOPICS) as channels:
        return str(await channels.publish(topic, message))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.publish_from_outside")
    parser.add_argument("url", help="of the Redis or Valkey server")
    parser.add_argument("topic", help='for the chat: "room:" and the name of the room')
    parser.add_argument("text", help="what is said there")
    parser.add_argument("--user", default="Notice", help="who says it (default: %(default)s)")
    options = parser.parse_args()
    need("redis", "redis")
    try:
        said = Said(options.user, options.text, "", dt.datetime.now(dt.UTC))
        print(anyio.run(publish, options.url, options.topic, said))
    except ChannelsError as error:
        sys.exit(str(error))
