"""One rank of a trial in this process: started by test_execute with RANK, WORLD_SIZE, LOCAL_RANK and MASTER_* set."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from raysweep.learn.zero import disconnect
from raysweep.trial.execute import execute

if __name__ == "__main__":
    record = execute(pickle.loads(Path(sys.argv[1]).read_bytes()), report=lambda event: None)
    disconnect()
    print(json.dumps(record))
