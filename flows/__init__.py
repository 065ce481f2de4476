"""Prefect runs the line: DVC describes it, Prefect says when and where."""

import os

from pipelines.stage import quiet

# Prefect reads its settings once, when it is imported.
quiet()
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # it makes its database first
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")  # the API may be away for minutes
