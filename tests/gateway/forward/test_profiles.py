"""The imitations judged: each observed fact of a product, asked for by hand."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.gateway.forward.by_hand import AIR, ID, JSON, JSON_LD, LINK, UPSERT, entity, no2, send
from tests.gateway.forward.scene import dumps
from tests.support.broker_profiles import OrionLd, Profile, Scorpio, Stellio
from tests.support.strict_broker import NEIGHBOUR, StrictBroker

TEMPORAL = "/ngsi-ld/v1/temporal/entities"
QUERY = f"?type=AirQualityObserved&id={ID}"
CORE_1_8 = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context-v1.8.jsonld"
HOSTED = "https://city.example/context.jsonld"
OTHER = "https://city.example/other.jsonld"
TENANT_S = 0.08
CACHE_S = 300.0


class Hand:
    """A clock moved by hand."""

    s = 1000.0

    def __call__(self) -> float:
        return self.s


def scorpio(clock: Hand | None = None, **changes: Any) -> Scorpio:
    """With the product's own times, which pass by hand; work takes none unless it is said."""
    own: dict[str, Any] = {"silence_s": 1.0, "look_s": 5.0, "tenant_s": TENANT_S, "cache_s": CACHE_S, "batch_s": None}
    return Scorpio(now_s=clock or Hand(), **{**own, **changes})


@asynccontextmanager
async def serving(profile: str | Profile) -> AsyncIterator[tuple[StrictBroker, str]]:
    strict = StrictBroker(profile=profile)
    async with strict.serve() as url:
        yield strict, url


def link(context: str) -> str:
    return LINK.replace(AIR, context)


def at(second: int, **changes: Any) -> dict[str, Any]:
    """The entity with a value of its own, so many seconds after noon."""
    return entity(**{"no2": no2(value=float(second), observedAt=f"2026-06-01T12:00:{second:02}Z"), **changes})


def point(second: int) -> tuple[str, str, str, float]:
    return ID, "no2", f"2026-06-01T12:00:{second:02}Z", float(second)


async def upsert(url: str, *items: dict[str, Any], headers: tuple[str, ...] = (JSON, LINK)) -> tuple[int, Any]:
    return await send(url, "POST", UPSERT, *headers, body=dumps(list(items)))


def working(seconds: float) -> tuple[asyncio.Event, Callable[[int], float]]:
    """Batches that take so long, and whether one was begun."""
    begun = asyncio.Event()

    def batch_s(count: int) -> float:
        begun.set()
        return seconds

    return begun, batch_s


async def neighbour_wrote(strict: StrictBroker, tenant: str = "") -> None:
    """Wait for the next thing that the first neighbour writes."""
    before = strict.current(f"{NEIGHBOUR}0", "no2", tenant)
    await eventually(lambda: strict.current(f"{NEIGHBOUR}0", "no2", tenant) != before)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it happens as time passes
            await asyncio.sleep(0.001)


# scorpio: history


async def test_scorpio_shows_an_update_in_its_history_only_after_a_silence() -> None:
    clock = Hand()
    async with serving(scorpio(clock, look_s=0.1)) as (strict, url):
        assert (await upsert(url, at(1)))[0] == 201
        clock.s += 0.9
        assert strict.points() == {}
        assert (await send(url, "GET", TEMPORAL + QUERY, LINK)) == (200, [])
        assert (await upsert(url, at(2)))[0] == 204
        clock.s += 0.9
        assert strict.points() == {}
        clock.s += 0.2
        status, [read] = await send(url, "GET", TEMPORAL + QUERY, LINK)
        assert (status, [shown["value"] for shown in read["no2"]]) == (200, [2.0, 1.0])
        assert strict.points() == {point(1): 1, point(2): 1}


async def test_scorpio_looks_for_silence_only_now_and_then() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        clock.s += 4.5
        await upsert(url, at(1))
        clock.s += 5.4  # a look at 5.0 was too early, the next is at 10.0
        assert strict.points() == {}
        clock.s += 0.2
        assert strict.points() == {point(1): 1}


async def test_another_writer_keeps_all_of_the_tenant_out_of_scorpios_history() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        async with strict.neighbour(every_s=0.001):
            await upsert(url, at(1))
            for _ in range(40):
                await neighbour_wrote(strict)
                clock.s += 0.8
                assert strict.points() == {}
            assert strict.current(ID, "no2") == 1.0
        clock.s += 6.0
        assert strict.points() == {point(1): 1}


async def test_a_write_by_the_temporal_api_is_no_silence_to_scorpio_either() -> None:
    clock = Hand()
    async with serving(scorpio(clock, look_s=0.1)) as (strict, url):
        await upsert(url, at(1))
        for second in (2, 3, 4):
            clock.s += 0.9
            assert (await send(url, "POST", TEMPORAL, JSON, LINK, body=dumps(at(second))))[0] in (201, 204)
            assert point(1) not in strict.points()
        clock.s += 1.2
        assert strict.points() == {point(second): 1 for second in (1, 2, 3, 4)}


async def test_a_writer_of_another_tenant_does_not_matter_to_scorpio() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url), strict.neighbour(every_s=0.001, tenant="other"):
        await upsert(url, at(1))
        for _ in range(8):
            await neighbour_wrote(strict, "other")
            clock.s += 0.8
        assert strict.points() == {point(1): 1}


async def test_scorpio_writes_without_silence_what_has_become_too_much() -> None:
    clock = Hand()
    async with serving(scorpio(clock, flush_at=40)) as (strict, url), strict.neighbour(every_s=0.001, entities=3):
        await upsert(url, at(1))
        for _ in range(8):
            await neighbour_wrote(strict)
            clock.s += 0.8
        assert strict.points() == {}
        for _ in range(16):
            await neighbour_wrote(strict)
            clock.s += 0.8
        assert strict.points() == {point(1): 1}


async def test_scorpio_forgets_at_a_restart_what_it_had_not_yet_written() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url), strict.neighbour(every_s=0.001):
        await upsert(url, at(1))
        await neighbour_wrote(strict)
        clock.s += 6.0
        assert strict.points() == {point(1): 1}
        await upsert(url, at(2))
        await upsert(url, at(3))
        await strict.restart()

        assert strict.current(ID, "no2") == 3.0
        assert [value.key for value in strict.forgotten] == [point(2), point(3)]
        assert strict.judge([point(1), point(2), point(3)]).missing == {point(2): 1, point(3): 1}
        await upsert(url, at(4))
        clock.s += 6.0
        assert strict.points() == {point(1): 1, point(4): 1}
        assert len(strict.forgotten) == 2


async def test_scorpio_forgets_in_an_outage_of_its_database_what_it_had_not_yet_written() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        await upsert(url, at(1))
        strict.database_away()
        strict.database_back()
        clock.s += 6.0
        assert strict.points() == {point(1): 1}  # it was back before a look
        await upsert(url, at(2))
        strict.database_away()
        status, told = await upsert(url, at(3))
        assert (status, told["type"].rsplit("/")[-1]) == (500, "InternalError")
        assert (await send(url, "GET", TEMPORAL + QUERY, LINK))[0] == 500
        assert (await send(url, "GET", "/ngsi-ld/v1/entities" + QUERY, LINK))[0] == 500
        clock.s += 6.0
        strict.database_back()

        assert [value.key for value in strict.forgotten] == [point(2)]
        assert strict.current(ID, "no2") == 2.0
        assert (await upsert(url, at(4)))[0] == 204
        clock.s += 6.0
        assert strict.points() == {point(1): 1, point(4): 1}


async def test_what_comes_by_the_temporal_api_is_in_scorpios_history_at_once_and_stays() -> None:
    async with serving(scorpio()) as (strict, url):
        for _ in range(2):  # the same twice is stored twice
            assert (await send(url, "POST", TEMPORAL, JSON, LINK, body=dumps(at(1))))[0] in (201, 204)
        await strict.restart()
        assert strict.points() == {point(1): 2}
        assert strict.judge([point(1)]).doubled == {point(1): 1}


async def test_scorpio_writes_a_row_for_every_attribute_it_is_sent_static_ones_too() -> None:
    place = {"type": "GeoProperty", "value": {"type": "Point", "coordinates": [9.1, 45.5]}}
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        await upsert(url, at(1, location=place))
        await upsert(url, at(2, location=place))
        clock.s += 6.0
        assert sorted(key[1] for key in strict.points().elements()) == ["location", "location", "no2", "no2"]


async def test_while_it_is_stopped_nobody_listens_and_connections_are_cut() -> None:
    async with serving(scorpio()) as (strict, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await upsert(url, at(1))  # by then the other connection is known
        await strict.stop()
        with pytest.raises(ConnectionError):
            await upsert(url, at(2))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await strict.start()
        assert (await upsert(url, at(3)))[0] == 204


async def test_a_batch_that_scorpio_was_at_work_on_when_it_ended_is_not_carried_out() -> None:
    at_work, batch_s = working(0.1)
    async with serving(scorpio(batch_s=batch_s)) as (strict, url):
        asked = asyncio.create_task(upsert(url, at(1)))
        await at_work.wait()
        await strict.restart()
        with pytest.raises(ConnectionError):
            await asked
        assert (await upsert(url, at(2)))[0] == 201  # comes after it
        assert strict.history() == [point(2)]


# scorpio: tenants


async def test_a_first_write_makes_scorpios_tenant_slowly_and_later_ones_are_quick() -> None:
    tenant = (JSON, LINK, "NGSILD-Tenant: roads")
    async with serving(scorpio()) as (strict, url):
        status, told = await send(url, "GET", "/ngsi-ld/v1/entities" + QUERY, *tenant[1:])
        assert (status, told["type"].rsplit("/")[-1]) == (404, "TenantNotFound")
        started_s = time.monotonic()
        assert (await upsert(url, at(1), headers=tenant))[0] == 201
        assert time.monotonic() - started_s >= TENANT_S
        assert "roads" in strict.tenants
        profile = strict.profile
        assert isinstance(profile, Scorpio)
        profile.tenant_s = 60.0
        assert (await upsert(url, at(2), headers=tenant))[0] == 204


async def test_a_tenant_that_is_made_is_not_made_again_while_its_first_write_is_carried_out() -> None:
    tenant = (JSON, LINK, "NGSILD-Tenant: roads")
    at_work, batch_s = working(0.2)
    profile = scorpio(batch_s=batch_s)
    async with serving(profile) as (_, url), asyncio.timeout(10):
        first = asyncio.create_task(upsert(url, at(1), headers=tenant))
        await at_work.wait()
        profile.tenant_s, profile.batch_s = 60.0, None
        assert (await upsert(url, at(2), headers=tenant))[0] in (201, 204)
        assert (await first)[0] in (201, 204)


async def test_of_several_tenants_made_at_once_scorpio_leaves_some_half_made_for_ever() -> None:
    async with serving(scorpio()) as (strict, url):
        answers = await asyncio.gather(
            *(upsert(url, at(1), headers=(JSON, LINK, f"NGSILD-Tenant: t{n}")) for n in range(3))
        )
        assert sorted(status for status, _ in answers) == [201, 500, 500]
        await strict.restart()
        half = next(n for n, (status, _) in enumerate(answers) if status == 500)
        status, told = await upsert(url, at(2), headers=(JSON, LINK, f"NGSILD-Tenant: t{half}"))
        assert (status, told["detail"]) == (500, 'relation "entity" does not exist')


async def test_tenants_made_one_after_the_other_are_whole_at_scorpio() -> None:
    async with serving(scorpio(tenant_s=0.02)) as (_, url):
        for n in range(3):
            assert (await upsert(url, at(1), headers=(JSON, LINK, f"NGSILD-Tenant: t{n}")))[0] == 201


# contexts


async def test_scorpio_fetches_a_context_once_and_again_after_a_while() -> None:
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        contexts = strict.profile.contexts
        for _ in range(3):
            await upsert(url, at(1), headers=(JSON, link(HOSTED)))
        assert contexts.fetched == [HOSTED]
        contexts.away(HOSTED)
        assert (await upsert(url, at(2), headers=(JSON, link(HOSTED))))[0] == 204
        clock.s += CACHE_S
        status, told = await upsert(url, at(3), headers=(JSON, link(HOSTED)))
        assert (status, told["errors"][0]["ProblemDetails"]["status"]) == (503, 503)
        contexts.serve(HOSTED)
        assert (await upsert(url, at(3), headers=(JSON, link(HOSTED))))[0] == 204


async def test_a_context_that_is_away_takes_only_its_own_entities_from_a_batch_of_scorpio() -> None:
    async with serving(scorpio()) as (strict, url):
        strict.profile.contexts.away(OTHER)
        good, bad = at(1, **{"@context": HOSTED}), at(1, id=ID + "-2", **{"@context": [OTHER, HOSTED]})
        status, told = await upsert(url, good, bad, headers=(JSON_LD,))
        assert (status, told["success"]) == (207, [ID])
        [error] = told["errors"]
        assert (error["id"], error["ProblemDetails"]["status"]) == (ID + "-2", 503)
        assert error["ProblemDetails"]["type"].endswith("LdContextNotAvailable")


async def test_a_context_that_is_away_is_503_on_reads_and_temporal_writes_of_scorpio() -> None:
    async with serving(scorpio()) as (strict, url):
        strict.profile.contexts.offline = True
        for path in ("/ngsi-ld/v1/entities" + QUERY, TEMPORAL + QUERY, f"{TEMPORAL}/{ID}"):
            status, told = await send(url, "GET", path, link(HOSTED))
            assert (status, told["type"].rsplit("/")[-1]) == (503, "LdContextNotAvailable")
        assert (await send(url, "POST", TEMPORAL, JSON, link(HOSTED), body=dumps(at(1))))[0] == 503
        assert strict.history() == []


async def test_scorpio_needs_no_internet_for_the_core_context_and_takes_any_type_of_others() -> None:
    async with serving(scorpio()) as (strict, url):
        contexts = strict.profile.contexts
        assert (await upsert(url, at(1), headers=(JSON, link(AIR))))[0] == 201  # text/plain
        contexts.fetched.clear()
        contexts.offline = True
        for context in (CORE_1_8, CORE_1_8.replace("-v1.8", "")):
            assert (await upsert(url, at(2), headers=(JSON, link(context))))[0] == 204
        assert (await upsert(url, at(3), headers=(JSON,)))[0] == 204
        assert (await upsert(url, at(3, **{"@context": {"no2": "urn:x:no2"}}), headers=(JSON_LD,)))[0] == 204
        assert contexts.fetched == []


async def test_stellio_refuses_all_that_uses_a_context_served_as_text() -> None:
    async with serving("stellio") as (strict, url):
        status, told = await upsert(url, at(1))  # AIR lies on a raw file host
        assert (status, told["type"].rsplit("/")[-1]) == (503, "LdContextNotAvailable")
        assert (await send(url, "POST", TEMPORAL, JSON, LINK, body=dumps(at(1))))[0] == 503
        assert (await send(url, "GET", "/ngsi-ld/v1/entities" + QUERY, LINK))[0] == 503
        good, bad = at(1, **{"@context": HOSTED}), at(1, id=ID + "-2", **{"@context": AIR})
        assert (await upsert(url, good, bad, headers=(JSON_LD,)))[0] == 503
        assert strict.history() == []
        assert (await upsert(url, good, headers=(JSON_LD,)))[0] == 201
        assert (await upsert(url, at(2), headers=(JSON, link(HOSTED))))[0] == 204
        strict.profile.contexts.serve(AIR)
        assert (await upsert(url, at(3)))[0] == 204


# scorpio: batches and values


async def test_the_time_of_a_batch_grows_with_its_square_at_scorpio() -> None:
    profile = Scorpio()
    assert profile.batch_s is not None
    assert profile.batch_s(100) > 10 * profile.batch_s(25)
    async with serving(scorpio(batch_s=profile.batch_s)) as (_, url):
        started_s = time.monotonic()
        assert (await upsert(url, *(at(1, id=f"{ID}-{n}") for n in range(100))))[0] == 201
        assert time.monotonic() - started_s >= profile.batch_s(100)


async def test_scorpios_batches_go_one_after_the_other() -> None:
    async with serving(scorpio(batch_s=lambda count: 0.05)) as (_, url):
        started_s = time.monotonic()
        await asyncio.gather(*(upsert(url, at(1, id=f"{ID}-{n}")) for n in range(3)))
        assert time.monotonic() - started_s >= 0.15


async def test_scorpio_gives_a_list_of_one_back_as_its_only_element() -> None:
    when = {"@type": "DateTime", "@value": "2026-06-01T12:00:00Z"}
    clock = Hand()
    async with serving(scorpio(clock)) as (strict, url):
        await upsert(url, at(1, no2=no2(value=[7]), o3=no2(value=[1, 2, [3]]), since=no2(value=when)))
        _, [read] = await send(url, "GET", "/ngsi-ld/v1/entities" + QUERY, LINK)
        assert (read["no2"]["value"], read["o3"]["value"]) == (7, [1, 2, 3])
        assert read["since"]["value"] == {"type": "DateTime", "@value": "2026-06-01T12:00:00Z"}
        clock.s += 6.0
        _, [read] = await send(url, "GET", TEMPORAL + QUERY, LINK)
        assert read["no2"]["value"] == 7
        assert (ID, "no2", "2026-06-01T12:00:00Z", "[7]") in strict.points()  # what was sent is what is judged


# stellio, orion-ld, orion, plain


async def test_stellios_tenants_are_those_of_its_configuration() -> None:
    async with serving(Stellio(tenants=["roads"])) as (_, url):
        status, told = await upsert(url, at(1), headers=(JSON, link(HOSTED), "NGSILD-Tenant: parks"))
        assert (status, told["type"].rsplit("/")[-1]) == (404, "NonexistentTenant")
        assert (await upsert(url, at(1), headers=(JSON, link(HOSTED), "NGSILD-Tenant: roads")))[0] == 201


async def test_stellio_takes_a_quarter_of_a_mebibyte() -> None:
    async with serving("stellio") as (_, url):
        large = at(1, text=no2(value="x" * 262_000, unitCode=...))
        assert (await upsert(url, large, headers=(JSON, link(HOSTED))))[0] == 413
        assert (await upsert(url, at(1, text=no2(value="x" * 250_000)), headers=(JSON, link(HOSTED))))[0] == 201


@pytest.mark.parametrize("name", ["stellio", "plain"])
async def test_stellio_and_plain_record_at_once_and_forget_nothing(name: str) -> None:
    async with serving(name) as (strict, url):
        await upsert(url, at(1), headers=(JSON, link(HOSTED)))
        await strict.restart()
        strict.database_away()
        assert (await upsert(url, at(2), headers=(JSON, link(HOSTED))))[0] == 500
        strict.database_back()
        assert strict.points() == {point(1): 1}
        assert strict.forgotten == []


async def test_orion_ld_answers_207_without_errors_when_new_and_old_are_mixed() -> None:
    async with serving("orion-ld") as (strict, url):
        assert await upsert(url, at(1)) == (201, [ID])
        status, told = await upsert(url, at(2), at(2, id=ID + "-2"))
        assert (status, told["errors"], set(told["success"])) == (207, [], {ID, ID + "-2"})
        assert (await send(url, "GET", TEMPORAL + QUERY, LINK))[0] == 404
        assert strict.temporal_history() == []
        assert strict.judge([point(1), point(2)]).missing == {}  # what its state was


async def test_orion_ld_with_troe_records_but_does_not_show_it_here() -> None:
    async with serving(OrionLd(troe=True)) as (strict, url):
        await upsert(url, at(1))
        assert (await send(url, "GET", TEMPORAL + QUERY, LINK))[0] == 404
        assert strict.temporal_history() == [point(1)]
        assert strict.points() == {point(1): 1}


async def test_orion_ld_merges_what_is_twice_in_a_batch_before_it_is_written() -> None:
    async with serving("orion-ld") as (strict, url):
        await upsert(url, at(1, o3=no2()), at(2))
        assert strict.judge([point(1), point(2)]).missing == {point(1): 1}
        assert strict.current(ID, "no2") == 2.0
        assert strict.current(ID, "o3") == 31.5


async def test_orion_ld_makes_a_tenant_by_the_first_write_in_small_letters() -> None:
    async with serving("orion-ld") as (strict, url):
        assert (await upsert(url, at(1), headers=(JSON, LINK, "NGSILD-Tenant: Roads")))[0] == 201
        assert set(strict.tenants) == {"roads"}
        assert (await upsert(url, at(2), headers=(JSON, LINK, "NGSILD-Tenant: roads")))[0] == 204


async def test_orion_asked_as_ngsi_ld_knows_no_such_service() -> None:
    async with serving("orion") as (_, url):
        for method, path in (("GET", "/ngsi-ld/v1/entities" + QUERY), ("POST", UPSERT)):
            assert await send(url, method, path, JSON, body=b"[]") == (
                400,
                {"error": "BadRequest", "description": "Service not found"},
            )


# the judge, and other writers


async def test_the_judge_tells_missing_doubled_and_invented_points_apart() -> None:
    async with serving("plain") as (strict, url):
        for second in (1, 1, 2, 3):
            await upsert(
                url, at(second, location={"type": "GeoProperty", "value": {"type": "Point", "coordinates": [9, 45]}})
            )
        verdict = strict.judge([point(1), point(2), point(4), point(4)])
        assert (verdict.missing, verdict.doubled, verdict.invented) == ({point(4): 2}, {point(1): 1}, {point(3): 1})
        assert not verdict.clean
        assert str(verdict) == "2 missing, 1 doubled, 1 invented"
        assert strict.judge([point(1), point(1), point(2), point(3)]).clean


async def test_a_neighbour_is_not_counted() -> None:
    async with serving("plain") as (strict, url):
        async with strict.neighbour(every_s=0.001, entities=2):
            await neighbour_wrote(strict)
            await neighbour_wrote(strict)
            assert strict.current(f"{NEIGHBOUR}1", "no2")
            await upsert(url, at(1))
        assert strict.history() == [point(1)]
        assert strict.judge([point(1)]).clean
        assert len(strict.requests) == 1
        assert strict.backwards == []


def test_as_a_process_of_a_profile_it_restarts_when_it_is_told() -> None:
    command = [sys.executable, "-m", "tests.support.strict_broker", "--port", "0", "--profile", "scorpio"]
    command += ["--profile-with", '{"silence_s": 60.0}']

    async def play(url: str) -> Any:
        async with asyncio.timeout(10):
            await upsert(url, at(1))
            assert (await send(url, "POST", "/_strict/restart", JSON, body=b'{"down_s": 0.01}'))[0] == 200
            assert (await send(url, "POST", "/_strict/database", JSON, body=b'{"away": true}'))[0] == 200
            assert (await upsert(url, at(2)))[0] == 500
            return (await send(url, "GET", "/_strict/held"))[1]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            held = asyncio.run(play(f"http://127.0.0.1:{int(process.stdout.readline())}"))
        finally:
            process.terminate()
    assert [(value["attribute"], value["value"]) for value in held["forgotten"]] == [("no2", 1.0)]
    assert json.dumps(held["entities"][""][ID]["no2"][0]["value"]) == "1.0"
