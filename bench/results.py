"""Where a benchmark's figures go."""

import json
from pathlib import Path


def publish(result: dict, path: Path) -> None:
    """Write the figures as JSON, and print them as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(result)
    path.write_text(line + '\n')
    print(line)
