"""Channels: topics to publish in, to join with a socket, and to subscribe to; in one process or many."""

from ..errors import BrokerError, ChannelsError, GapError, SlowSubscriberError
from .backend import Backend, Keep, Page, Present, Receiver
from .channels import Channels
from .memory import MemoryBackend
from .options import ChannelsStatistics, Member, TopicOptions
from .policies import Joined, Lost, latest
from .publication import Position, Publication
from .script import client_module
from .subscriptions import Subscription

__all__ = [
    "Backend",
    "BrokerError",
    "Channels",
    "ChannelsError",
    "ChannelsStatistics",
    "GapError",
    "Joined",
    "Keep",
    "Lost",
    "Member",
    "MemoryBackend",
    "Page",
    "Position",
    "Present",
    "Publication",
    "Receiver",
    "SlowSubscriberError",
    "Subscription",
    "TopicOptions",
    "client_module",
    "latest",
]
