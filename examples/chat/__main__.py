"""Run the chat: `python -m examples.chat`."""

from examples._serve import serve

from .app import app

if __name__ == "__main__":
    serve(app)
