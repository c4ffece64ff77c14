"""A chat with rooms and a page: `python -m examples.chat`. The server is `app.py`, the page `chat.html` beside it."""
