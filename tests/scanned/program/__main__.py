"""The program as `python -m tests.scanned.program`."""

import json
import sys

from tests.scanned.program.main import app, runs

sys.stdout.write(json.dumps({"runs": runs, "paths": sorted(route.path for route in app.routes)}))
