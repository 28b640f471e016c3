"""Settings of the whole test run."""

import os

# The policies of the tests are so small that threads cost more than they bring; set before torch is
# imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
