import sys
from pathlib import Path

# `making` is shared by the tests of this folder, also in the processes that they start.
sys.path.insert(0, str(Path(__file__).parent))
