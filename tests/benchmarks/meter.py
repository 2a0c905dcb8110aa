"""What a process costs, read from /proc: CPU seconds, resident memory, bytes written to the block layer."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system), resident MiB, bytes that went to the disk so far."""

    cpu_s: float
    rss_mib: float
    disk_bytes: int

    def __sub__(self, earlier: "Cost") -> "Cost":
        return Cost(self.cpu_s - earlier.cpu_s, self.rss_mib, self.disk_bytes - earlier.disk_bytes)


def cost(pid: int) -> Cost:
    """What this process has cost so far, all threads."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
    io = dict(line.split(":", 1) for line in (proc / "io").read_text().splitlines())
    return Cost(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        disk_bytes=int(io["write_bytes"]) - int(io["cancelled_write_bytes"]),
    )
