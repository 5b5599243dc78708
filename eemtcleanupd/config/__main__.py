"""``python -m eemtcleanupd.config`` writes the JSON Schema of the file, for editors, to its output."""

import json
import sys

from eemtcleanupd.config.schema import json_schema

json.dump(json_schema(), sys.stdout, indent=2, ensure_ascii=False)
sys.stdout.write("\n")
