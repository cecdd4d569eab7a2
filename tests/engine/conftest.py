import sys
from pathlib import Path

from fixtures import fresh_accelerator, one_thread  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # for toy.py
