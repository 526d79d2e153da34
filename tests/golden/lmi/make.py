"""Record what java.util.Properties reads: python tests/golden/lmi/make.py > tests/golden/lmi/properties.json."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CASES = (
    "",
    "a=b",
    "a=b\n",
    "a = b\n",
    "a:b\n",
    "a b\n",
    "a\n",
    "a=\n",
    "=b\n",
    "a==b\n",
    "a=:b\n",
    "a =\t: b\n",
    "a=b \n",
    "  a=b\n",
    "\fa=b\n",
    "# a=b\n",
    "! a=b\n",
    "  # a=b\n",
    "a=b # no comment\n",
    "#a\\\nb=c\n",
    "a=b\\\n  c\n",
    "a=b\\\\\nc=d\n",
    "a=b\\\\\\\nc=d\n",
    "a\\=b=c\n",
    "a\\:b=c\n",
    "a\\ b=c\n",
    "a=b\\tc\\nd\\qe\n",
    "a=\\u0041\n",
    "a=\\u00e9\n",
    "a=\\u00zz\n",
    "a=\\u41\n",
    "a=\u00e9\n",
    "a=b\ra=c\r\na=d\n",
    "a=b\\\r\nc\r\n",
    "a=b\\",
    "\\",
    "\\\n",
    "\\\r\n",
    "\\\n# a=b\n",
    "a=b\\\n\nc=d\n",
    "a=b\\\n   \nc=d\n",
    "engine=MPI\noption.rolling_batch=trtllm\n\noption.tensor_parallel_degree=2\n",
)


def asked(contents: Sequence[bytes]) -> list[dict[str, str] | None]:
    """What Java reads of each file; None where it refuses."""
    given = b"".join(struct.pack(">i", len(content)) + content for content in contents)
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", str(HERE / "Read.java")]
    result = subprocess.run(command, input=struct.pack(">i", len(contents)) + given, capture_output=True, check=True)
    lines = result.stdout.decode().splitlines()
    assert len(lines) == len(contents), result.stderr
    return [_read(line) for line in lines]


def _read(line: str) -> dict[str, str] | None:
    words = line.split(" ")
    if words[0] == "refused":
        return None
    pairs = (word.split("=") for word in words[1:])
    return {_text(key): _text(value) for key, value in pairs}


def _text(units: str) -> str:
    return bytes.fromhex(units).decode("utf-16-be", "surrogatepass")


if __name__ == "__main__":
    contents = [case.encode("latin-1") for case in CASES]
    recorded = [{"file": case, "java": read} for case, read in zip(CASES, asked(contents), strict=True)]
    json.dump(recorded, sys.stdout, indent=1)
    sys.stdout.write("\n")
