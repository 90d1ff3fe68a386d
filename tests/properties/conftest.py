"""How many examples the property tests take: few, always the same; with MTPD_PROPERTIES=thorough many new ones, for an hour."""

import os

from hypothesis import HealthCheck, settings

SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large]  # what they find is the machine's load
COMMON = settings(deadline=None, database=None, suppress_health_check=SLOW_MACHINES, print_blob=True)
settings.register_profile("quick", COMMON, derandomize=True, max_examples=40, stateful_step_count=20)
settings.register_profile("thorough", COMMON, max_examples=4000, stateful_step_count=60)
settings.load_profile(os.environ.get("MTPD_PROPERTIES", "quick"))
