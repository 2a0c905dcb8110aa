"""What a whole box costs, beside the floor program in the same run. Prints; judges nothing but that all worked."""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.meter import Cost, cost
from tests.support.box import REPOSITORY, Box, Process, eventually, get_json

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

UNITS, FLOATS = 50, 10
WARM_UP_S, WINDOW_S = 8.0, 30.0

POINTS = {"co": "co", "no2": "no2", "nox": "nox", "o3": "o3", "so2": "so2"}  # attribute: quantity
POINTS |= {"c6h6": "c6h6", "sh2": "h2s", "pm1": "pm1", "pm25": "pm25", "pm10": "pm10"}

CONFIG = """
version: 1
gateway: {{id: gw-bench, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db", commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
links:
{links}
{brokers}
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    template = {
        "vendor": "Bench",
        "model": "ten floats",
        "points": {
            f"v{n}": {"quantity": quantity, "table": "holding", "address": 2 * n, "type": "float32"}
            for n, quantity in enumerate(POINTS.values())
        },
        "entity": {
            "type": "AirQualityObserved",
            "attributes": {attribute: f"v{n}" for n, attribute in enumerate(POINTS)},
        },
    }
    folder = tmp_path / "templates" / "bench"
    folder.mkdir(parents=True)
    (folder / "ten-floats.yaml").write_text(json.dumps(template))
    yield box
    box.close()


def helper(box: Box, name: str, *arguments: str) -> str:
    """Start a farm or sink; what it prints first."""
    process = box.start(name, str(REPOSITORY / "tests" / "benchmarks" / f"{name}.py"), *arguments)
    return eventually(f"the {name} prints", lambda: process.text().strip())


def config(box: Box, ports: list[int], sink: int | None) -> str:
    links = "\n".join(
        f"  plc-{n}: {{driver: modbus, host: 127.0.0.1, port: {port}, "
        f"devices: {{unit-{n}: {{template: bench/ten-floats, unit_id: 1, every: 1 s}}}}}}"
        for n, port in enumerate(ports)
    )
    brokers = f'brokers: {{sink: {{url: "http://127.0.0.1:{sink}", linger: 1 s, rate: 10000/s}}}}' if sink else ""
    return CONFIG.format(box=box.folder, http=box.port, links=links, brokers=brokers)


def window(processes: dict[str, Process]) -> dict[str, Cost]:
    """What each process costs in one window, at the same moment."""
    time.sleep(WARM_UP_S)
    before = {name: cost(process.popen.pid) for name, process in processes.items()}
    time.sleep(WINDOW_S)
    return {name: cost(process.popen.pid) - before[name] for name, process in processes.items()}


def test_fifty_units_beside_the_floor(box: Box) -> None:
    ports = json.loads(helper(box, "farm", "--ports", str(UNITS)))
    sink = int(helper(box, "sink"))
    given = {"ports": ports, "floats": FLOATS, "sink": sink, "db": str(box.folder / "floor.db")}
    floor = box.start("floor", str(REPOSITORY / "tests" / "benchmarks" / "floor.py"), json.dumps(given))
    box.write(config(box, ports, sink))
    daemon = box.start_daemon()

    costs = window({"citygate": daemon, "floor": floor})

    readings = UNITS * FLOATS * WINDOW_S
    for name, its in costs.items():
        print(
            f"\n{name:9} {its.cpu_s / readings * 1e6:6.1f} µs CPU a reading, {its.rss_mib:5.1f} MiB, "
            f"{its.disk_bytes / readings:6.1f} disk bytes a reading",
            end="",
        )
    print(f"\ncitygate / floor: {costs['citygate'].cpu_s / costs['floor'].cpu_s:.2f} (aim 1.2)")
    stats = get_json(f"http://127.0.0.1:{sink}/stats")
    assert stats["entities"] > 2 * 0.9 * UNITS * WINDOW_S


def test_cold_start_to_first_reading(box: Box) -> None:
    ports = json.loads(helper(box, "farm", "--ports", "1"))
    box.write(config(box, ports, None).replace("every: 1 s", "every: 100 ms"))
    waits_s = []
    for _ in range(5):
        started_s = time.monotonic()
        daemon = box.start("daemon", "-m", "gateway", "run", "-c", str(box.config))
        eventually("the first reading", lambda: box.device("plc-0", "unit-0").get("readings"))
        waits_s.append(time.monotonic() - started_s)
        daemon.end()
    print(f"\ncold start to first reading: median {statistics.median(waits_s):.2f} s (aim 2 s), all {waits_s}")


def test_idle(box: Box) -> None:
    """Both drivers loaded, one poll a minute, nothing else to do."""
    ports = json.loads(helper(box, "farm", "--ports", "1"))
    links = (
        f"  plc: {{driver: modbus, host: 127.0.0.1, port: {ports[0]}, "
        "devices: {unit: {template: bench/ten-floats, unit_id: 1, every: 1 min}}}\n"
        f"  air: {{driver: serial, port: {box.folder}/air, devices: {{air-1: {{template: nova/sds011}}}}}}"
    )
    box.write(CONFIG.format(box=box.folder, http=box.port, links=links, brokers=""))
    box.start_simulator("air")
    daemon = box.start_daemon()

    its = window({"citygate": daemon})["citygate"]

    print(
        f"\nidle: {its.cpu_s / WINDOW_S * 100:.2f} % of a core (aim 1 %), {its.rss_mib:.1f} MiB with both drivers (aim 65)"
    )
