"""What the applications read when they are imported. No issuer is running there, and none is needed.

Run the tests of one application at a time: cd examples && python -m pytest tests/test_guarded.py
"""

import os
import tempfile

os.environ["ISSUER"] = "https://auth.example.com"
os.environ["CREDENTIAL"] = "not-needed-here"

folder = tempfile.TemporaryDirectory()  # until the process ends
os.environ["SEKISHO_DATABASE_URL"] = f"sqlite:///{folder.name}/sekisho.db"
