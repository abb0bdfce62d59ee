"""What both sides agree on before a round: the plan, the networks, their parameters on the wire."""

import os

# Flower and the data hub report usage unless told not to; nothing Veil starts may do either. Every
# package that imports Flower imports this one first.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
