"""Every product, alone, shared by two boxes, and busy with others; every fault of broker, database, network and box; and all of
them: each point is in the history once, the state is never older than it was.

All cells run side by side; each test looks at one of them, `-k` plays the cells that it names and no other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gateway.forward.products import HOURS_S, LOOKS_S, ROUND_S, YOUNG_S, City, Ticks, city

PRODUCTS = ("scorpio", "stellio", "orion-ld", "plain")
SCENES = ("one box", "two boxes", "busy tenant")
ABREAST = 40
CELL_S = 120.0  # for one cell, others running beside it
WINDOW = round(YOUNG_S / ROUND_S) + 2  # so many rounds, and what was before them is on the card or with the broker

pytestmark = pytest.mark.timeout(900)  # the first test waits for all cells


# faults: each begins with points that the broker acknowledged and has not yet written, and ends with live data


async def restart(at: City) -> None:
    """A request meets it: live data goes on."""
    await at.live(4)
    await at.strict.stop()
    await at.live(5)
    await at.strict.start()
    await at.live(4)


async def database(at: City) -> None:
    await at.live(4)
    at.strict.database_away()
    await at.live(16)  # long enough that the broker tries to write its history
    at.strict.database_back()
    await at.live(4)


async def outage(at: City) -> None:
    await at.live(4)
    await cut(at)
    await at.live(8)
    at.strict.behaviour.fault = ""
    await at.live(4)


async def cut(at: City) -> None:
    """The network goes: what is on its way arrives, its answer does not."""
    behaviour = at.strict.behaviour
    behaviour.fault, behaviour.times = "reset_stored", 2
    while behaviour.times:
        await at.live(1)
    behaviour.fault, behaviour.times = "reset", None


async def kill(at: City) -> None:
    await at.live(WINDOW)
    await at.boxes[0].kill()
    await at.live(4)  # the others
    await at.start(at.boxes[:1])
    await at.live(6)


async def all_of_them(at: City) -> None:
    await restart(at)
    await database(at)
    if await at.seen():  # a kill before that were a second fault of what the broker forgot
        return
    await at.live(4)
    await cut(at)
    await at.live(WINDOW)
    await at.boxes[0].kill()
    await at.start(at.boxes[:1])
    await at.live(4)
    at.strict.behaviour.fault = ""
    await at.live(4)
    if await at.seen():
        return
    await restart(at)


async def unmet_restart(at: City) -> None:
    """No request meets it: nobody can notice, and what is forgotten is lost."""
    at.double_fault = True
    await at.live(6)
    await at.strict.restart()
    await at.live(6)


async def kill_and_restart(at: City) -> None:
    """What the broker acknowledged is on nobody's card, and then it forgets it."""
    at.double_fault = True
    await at.live(WINDOW)
    await at.boxes[0].kill()
    await at.strict.restart()
    await at.start(at.boxes[:1])
    await at.live(6)


async def reloads(at: City) -> None:
    """The forwarder is made anew, with what was accepted and is not seen yet, in health and in an outage."""
    await at.live(6)
    await at.boxes[0].reload()
    await at.live(6)
    await restart(at)
    await at.boxes[0].reload()
    await at.live(4)
    await cut(at)
    await at.live(4)
    await at.boxes[0].reload()
    await at.live(4)
    at.strict.behaviour.fault = ""
    await at.live(6)


async def late_card(at: City) -> None:
    """The card is not there when the box starts: the numbers of its sets grow when it comes."""
    box = at.boxes[0]
    await at.live(4)
    await box.stop()
    box.card_away = True
    await at.start([box])
    await at.live(8)
    box.card_away = False
    assert box.log is not None
    await box.log.commit()
    await at.live(4)
    await restart(at)


async def hours(at: City) -> None:
    """Nothing shows for longer than anything is waited for: what was forgotten meanwhile is given up."""
    at.double_fault = True
    await restart(at)
    for box in at.boxes:
        box.clock.leap(HOURS_S)
    await at.live(12)
    await at.ticks.passed(LOOKS_S)


FAULTS: dict[str, Callable[[City], Awaitable[None]]] = {
    "restart": restart,
    "database away": database,
    "outage": outage,
    "kill": kill,
    "all": all_of_them,
}
DOUBLE = {
    "restart unmet": unmet_restart,
    "kill and restart": kill_and_restart,
}  # something may be lost, nothing doubled
OURS = {"reload": reloads, "late card": late_card}
HOURS = {"hours": hours}
FORGETS = ("restart", "database away", "all", *DOUBLE, *OURS, *HOURS)


@dataclass(frozen=True)
class Cell:
    """One product in one scene with one fault."""

    product: str
    scene: str
    fault: str
    preset: str = "auto"

    def __str__(self) -> str:
        return f"{self.product}{', preset' if self.preset != 'auto' else ''}, {self.scene}, {self.fault}"


CELLS = [Cell(product, scene, fault) for product in PRODUCTS for scene in SCENES for fault in FAULTS]
CELLS += [Cell("scorpio", scene, fault, "scorpio") for scene in SCENES for fault in FAULTS]
CELLS += [Cell("scorpio", scene, fault) for scene in SCENES for fault in DOUBLE]
CELLS += [Cell(product, scene, fault) for product in PRODUCTS[::3] for scene in SCENES for fault in OURS]
CELLS += [Cell("scorpio", scene, "hours", "scorpio") for scene in SCENES]
CELLS += [Cell("stellio", "one box", fault, "stellio") for fault in FAULTS]
CELLS += [Cell("no record", scene, fault) for scene in SCENES[:2] for fault in FAULTS]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, str]:
    """What came of the cells that are asked for."""
    folder = tmp_path_factory.mktemp("products")
    asked = {item.callspec.params["cell"] for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]

    async def run_all() -> dict[Cell, str]:
        abreast, ticks = asyncio.Semaphore(ABREAST), Ticks()

        async def one(number: int, cell: Cell) -> tuple[Cell, str]:
            async with abreast:
                return cell, await run(cell, folder / str(number), ticks)

        async with ticks.run():
            cells = [cell for cell in CELLS if cell in asked]
            return dict(await asyncio.gather(*(one(number, cell) for number, cell in enumerate(cells))))

    return asyncio.run(run_all())


async def run(cell: Cell, folder: Path, ticks: Ticks) -> str:
    """Play it; what is wrong, "" when all is well."""
    boxes, tenant = (2, "milano") if cell.scene == "two boxes" else (1, "")
    busy = cell.scene == "busy tenant"
    try:
        async with city(
            folder, cell.product, ticks=ticks, boxes=boxes, busy=busy, tenant=tenant, preset=cell.preset
        ) as at:
            try:
                async with asyncio.timeout(CELL_S):
                    return await play(cell, at)
            except TimeoutError:
                return f"not within {CELL_S:g} s; so far:\n{at.faults()}"
    except Exception as error:  # noqa: BLE001 - told by the cell's own test
        return f"{type(error).__name__}: {error}"


async def play(cell: Cell, at: City) -> str:
    await at.live(8)
    if not at.busy:
        await at.quiet()
    await {**FAULTS, **DOUBLE, **OURS, **HOURS}[cell.fault](at)
    if faults := await at.seen():
        return faults
    if cell.product == "scorpio" and cell.fault in FORGETS and not at.forgotten():
        return "the broker forgot nothing: nothing was tried"
    return await later(at)


async def later(at: City) -> str:
    """Hours pass, every box starts once more: what was in the history once stays so."""
    await at.ticks.passed(LOOKS_S)
    for box in at.boxes:
        box.clock.leap(HOURS_S)
    await at.live(2)
    await at.quiet()
    for box in at.boxes:
        await box.stop()
    await at.start(at.boxes)
    await at.live(2)
    faults = await at.seen()
    return f"hours later, after another start: {faults}" if faults else ""


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_each_point_is_in_the_history_once_and_the_state_is_never_older(found: dict[Cell, str], cell: Cell) -> None:
    assert found[cell] == ""
