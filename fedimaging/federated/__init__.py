"""The Flower side: one ServerApp and one ClientApp, driven by three carriers. Only this package imports flwr.

Importing it turns off Flower's telemetry, its update check and its installing of packages at run time.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
