"""A fleet shares base files: maps merge key by key, else the later file wins, null takes away."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import box
from gateway.config.edit import link_names, put_device
from gateway.config.effective import lines
from gateway.config.last_good import LastGood, NotKept, Unpacked, snapshot
from gateway.config.loader import load
from gateway.environment import Environment
from gateway.models.extension import read_brief, write_model
from gateway.plan import Plan, find_driver, make_plan
from gateway.sdk.errors import ConfigError
from tests.support.bench_driver import BenchRegistry
from tests.support.box import REPOSITORY

BASE = """\
version: 1
gateway: {city: milano, location: [9.1, 45.5]}
buffer: {max_size: 2 GB}
links:
  roof:
    driver: bench
    port: /dev/ttyAMA0
    devices:
      meter-12: {template: acme/meter, unit_id: 1, every: 10 s}
      meter-13: {template: acme/meter, unit_id: 2}
brokers:
  milano: {url: "https://milano.example", tenant: one, send: ["*", "meter-*"]}
  porto: {url: "https://porto.example"}
"""
BOX = "base: base.yaml\ngateway: {id: gw-1}\n"


def written(folder: Path, **files: str) -> Path:
    """Files of a config, `fleet__base` is `fleet/base.yaml`; returns the folder."""
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def plan_of(folder: Path, **files: str) -> Plan:
    return make_plan(written(folder, **files), BenchRegistry(), with_secrets=False, environment=Environment())


def refused(folder: Path, **files: str) -> list[tuple[str, str, int]]:
    """Code, file and line of each problem."""
    with pytest.raises(ConfigError) as error:
        plan_of(folder, **files)
    return [(p.code, Path(p.file).name, p.line) for p in error.value.problems if p.severity == "error"]


def test_maps_merge_key_by_key_and_of_all_else_the_box_wins(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        base=BASE,
        citygate=BOX
        + "links: {roof: {devices: {meter-12: {every: 30 s}, meter-14: {template: acme/meter, unit_id: 3}}}}\n"
        + 'brokers: {milano: {send: ["meter-12"]}, lisboa: {url: "https://lisboa.example"}}\n',
    )
    devices: Any = plan.config.links["roof"].devices
    assert {name: (its.unit_id, its.every_s) for name, its in devices.items()} == {
        "meter-12": (1, 30.0),
        "meter-13": (2, 10.0),
        "meter-14": (3, 10.0),
    }
    assert plan.config.brokers["milano"].send == ("meter-12",), "a list is one value"
    assert (plan.config.brokers["milano"].tenant, list(plan.config.brokers)) == ("one", ["milano", "porto", "lisboa"])
    assert (plan.config.gateway.id, plan.config.gateway.city) == ("gw-1", "milano")
    assert [file.name for file in plan.files] == ["citygate.yaml", "base.yaml"]


def test_null_takes_away_a_device_a_broker_a_key(tmp_path: Path) -> None:
    box_file = BOX + "buffer: {max_size: ~}\nlinks: {roof: {devices: {meter-13: null}}}\n"
    plan = plan_of(tmp_path, base=BASE, citygate=box_file + "brokers: {porto: null, milano: {tenant: null}}\n")
    assert list(plan.devices) == ["meter-12"]
    assert plan.config.brokers.keys() == {"milano"}
    assert (plan.config.brokers["milano"].tenant, plan.config.buffer.max_size_bytes) == (None, 10**9)
    assert plan.warnings == ()


def test_null_takes_away_what_the_city_profile_gives_as_well(tmp_path: Path) -> None:
    profile = "broker: {tenant: of-the-city, linger: 5 s}\n"
    base = BASE.replace("tenant: one", "use: cities/own, tenant: one")
    plan = plan_of(tmp_path, base=base, cities__own=profile, citygate=f"{BOX}brokers: {{milano: {{tenant: null}}}}\n")
    assert (plan.config.brokers["milano"].tenant, plan.config.brokers["milano"].linger_s) == (None, 5.0)
    base = base.replace(", tenant: one", "")  # now the profile alone gives it
    plan = plan_of(tmp_path, base=base, cities__own=profile, citygate=f"{BOX}brokers: {{milano: {{tenant: null}}}}\n")
    assert (plan.config.brokers["milano"].tenant, plan.warnings) == (None, ())


def test_a_later_value_in_the_place_of_a_null_counts(tmp_path: Path) -> None:
    files = {"base": BASE, "city": "base: base.yaml\nbrokers: {milano: {tenant: null}, porto: null}\n"}
    plan = plan_of(
        tmp_path, **files, citygate="base: city.yaml\ngateway: {id: gw-1}\nbrokers: {milano: {tenant: two}}\n"
    )
    assert (plan.config.brokers["milano"].tenant, list(plan.config.brokers)) == ("two", ["milano"])


def test_a_file_without_a_base_may_say_null_where_its_model_takes_it(tmp_path: Path) -> None:
    text = BASE.replace("tenant: one", "tenant: null").replace("{city", "{id: gw-1, city")
    plan = plan_of(tmp_path, citygate=text)
    assert (plan.config.brokers["milano"].tenant, plan.warnings) == (None, ())


def test_a_null_that_takes_nothing_away_is_told_also_when_a_base_says_it_too(tmp_path: Path) -> None:
    files = {"base": BASE, "city": "base: base.yaml\nbrokers: {porto: {tenant: null}}\n"}
    plan = plan_of(tmp_path, **files, citygate="base: city.yaml\ngateway: {id: gw-1}\nbrokers: {porto: {tenant: ~}}\n")
    assert [(p.code, Path(p.file).name, p.line) for p in plan.warnings] == [("nothing-taken", "citygate.yaml", 3)]


def test_an_attribute_given_as_null_is_not_sent_whatever_the_base_says_of_it(tmp_path: Path) -> None:
    base = BASE.replace(
        "unit_id: 1,", "unit_id: 1, entity: {attributes: {totalActivePower: power}, static: {description: roof}},"
    )
    over = "links: {roof: {devices: {meter-12: {entity: {attributes: {totalActivePower: null}, static: {description: null}}}}}}\n"
    try:
        entity = plan_of(tmp_path, base=base, citygate=BOX + over).devices["meter-12"].config.entity
    except ConfigError as error:
        pytest.fail(str(error))
    assert entity is not None
    assert (entity.attributes, entity.static) == ({"totalActivePower": None}, {})


def test_several_bases_count_in_their_order_and_each_once(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        base=BASE,
        roof="base: base.yaml\ngateway: {name: roof}\nhttp: {listen: 127.0.0.1:1}\n",
        city="base: base.yaml\ngateway: {name: city, city: torino}\nbuffer: {max_size: 3 GB}\n",
        citygate="base: [city.yaml, roof.yaml]\ngateway: {id: gw-1}\nbuffer: {max_age: 9 d}\n",
    )
    config = plan.config
    assert (config.gateway.name, config.gateway.city, config.http.port) == ("roof", "torino", 1)
    assert (config.buffer.max_size_bytes, config.buffer.max_age_s) == (3 * 10**9, 9 * 86400.0)
    assert [file.name for file in plan.files] == ["citygate.yaml", "base.yaml", "city.yaml", "roof.yaml"]


def test_fragments_of_the_box_win_over_the_base_and_exclude_each_other_as_ever(tmp_path: Path) -> None:
    fragment = "links: {roof: {devices: {meter-12: {every: 20 s}}}}\n"
    plan = plan_of(tmp_path, base=BASE, citygate=BOX, **{"conf.d__a": fragment})
    assert plan.config.links["roof"].devices["meter-12"].every_s == 20.0  # type: ignore[attr-defined]
    assert refused(tmp_path, **{"conf.d__b": fragment}) == [("duplicate-key", "b.yaml", 1)]


def test_problems_are_told_in_the_file_that_gave_the_value(tmp_path: Path) -> None:
    found = refused(
        tmp_path,
        base=BASE.replace("unit_id: 2", "unit_id: 300"),
        citygate=f"{BOX}links: {{roof: {{devices: {{meter-12: {{unit_id: 400}}}}}}}}\nhttp: []\n",
    )
    assert found == [
        ("out-of-range", "base.yaml", 10),
        ("out-of-range", "citygate.yaml", 3),
        ("wrong-type", "citygate.yaml", 4),
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "x-a: 1\n"])
def test_a_base_with_nothing_in_it_gives_nothing(tmp_path: Path, text: str) -> None:
    plan = plan_of(tmp_path, empty=text, base=BASE, citygate=BOX.replace("base.yaml", "[base.yaml, empty.yaml]"))
    assert list(plan.devices) == ["meter-12", "meter-13"]


def test_a_box_that_says_its_base_alone_lacks_its_name_only(tmp_path: Path) -> None:
    assert refused(tmp_path, base=BASE, citygate="base: base.yaml\n") == [("missing-key", "base.yaml", 2)]


def test_a_device_that_moves_to_another_link_is_null_on_the_first(tmp_path: Path) -> None:
    moved = "links: {plant: {driver: bench, host: h, devices: {meter-13: {template: acme/meter}}}%s}\n"
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, base=BASE, citygate=BOX + moved % "")
    [problem] = [problem for problem in error.value.problems if problem.severity == "error"]
    assert (problem.code, problem.remedy.endswith("; if it has moved: meter-13: null on link roof")) == (
        "duplicate-device",
        True,
    )
    plan = plan_of(tmp_path, citygate=BOX + moved % ", roof: {devices: {meter-13: null}}")
    assert {name: device.link for name, device in plan.devices.items()} == {"meter-12": "roof", "meter-13": "plant"}


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"citygate": "base: ./citygate.yaml\n" + BASE}, ("base-cycle", "citygate.yaml", 1)),
        ({"citygate": "base: conf.d/a.yaml\n" + BASE, "conf.d__a": "x-a: 1\n"}, ("base-cycle", "citygate.yaml", 1)),
        ({"citygate": BASE, "conf.d__a": "base: citygate.yaml\n"}, ("base-cycle", "a.yaml", 1)),
        ({"citygate": BOX, "base": BASE, "conf.d__a": "base: base.yaml\n"}, ("duplicate-key", "a.yaml", 1)),
        ({"citygate": f"base: ''\n{BASE}"}, ("wrong-length", "citygate.yaml", 1)),
        ({"citygate": f"base:\n{BASE}"}, ("missing-value", "citygate.yaml", 1)),
        ({"citygate": f"base: !secret base\n{BASE}"}, ("wrong-name", "citygate.yaml", 1)),
        ({"citygate": f"base: ~nobody-of-that-name/base.yaml\n{BASE}"}, ("unreadable-file", "citygate.yaml", 1)),
        ({"citygate": f'base: "a\\0b"\n{BASE}'}, ("wrong-name", "citygate.yaml", 1)),
        ({"citygate": BOX, "base": f"base: {{file: c}}\n{BASE}"}, ("wrong-name", "base.yaml", 1)),
        ({"citygate": BOX, "base": f"base: [[c.yaml]]\n{BASE}"}, ("wrong-name", "base.yaml", 1)),
        ({"citygate": BOX, "base": f"base:\n{BASE}"}, ("wrong-name", "base.yaml", 1)),
        ({"citygate": BOX, "base": "a: [\n"}, ("yaml-syntax", "base.yaml", 1)),
        ({"citygate": "base: citygate.yaml\n"}, ("base-cycle", "citygate.yaml", 1)),
        ({"citygate": BOX, "base": "- version: 1\n"}, ("wrong-type", "base.yaml", 1)),
    ],
)
def test_a_base_that_cannot_be_one_is_the_one_problem(
    tmp_path: Path, files: dict[str, str], place: tuple[str, str, int]
) -> None:
    files = {name: text.replace("gateway: {city", "gateway: {id: gw-1, city") for name, text in files.items()}
    assert refused(tmp_path, **files) == [place]


def test_a_row_of_bases_has_an_end(tmp_path: Path) -> None:
    files = {f"b{number}": f"base: b{number + 1}.yaml\n" for number in range(16)} | {"b16": BASE, "b15": BASE}
    assert list(plan_of(tmp_path, **files, citygate="base: b0.yaml\ngateway: {id: gw-1}\n").devices) == [
        "meter-12",
        "meter-13",
    ]
    assert refused(tmp_path, b15="base: b16.yaml\n") == [("base-cycle", "b15.yaml", 1)]


def test_what_neither_has_is_missing_in_the_file_of_the_box(tmp_path: Path) -> None:
    found = refused(tmp_path, base=BASE.replace("version: 1\n", ""), citygate=f"# this box\n{BOX}")
    assert found == [("missing-key", "citygate.yaml", 2)]


def test_a_base_may_be_in_somebodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(written(tmp_path / "home", base=BASE)))
    plan = plan_of(tmp_path / "box", citygate="base: ~/base.yaml\ngateway: {id: gw-1}\n")
    assert list(plan.devices) == ["meter-12", "meter-13"]


def test_a_variable_that_names_a_base_is_told_to_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYGATE__BASE", "other.yaml")
    assert refused(tmp_path, base=BASE, citygate=BOX) == [("ignored-variable", "environment CITYGATE__BASE", 0)]


def test_a_variable_takes_away_what_the_files_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYGATE__BROKERS__MILANO", "null")
    plan = plan_of(tmp_path, base=BASE, citygate=BOX)
    assert (list(plan.brokers), [p.code for p in plan.warnings if p.code == "nothing-taken"]) == (["porto"], [])
    monkeypatch.setenv("CITYGATE__BROKERS__MILNO", "null")
    plan = plan_of(tmp_path, base=BASE, citygate=BOX)
    assert [(p.code, p.file) for p in plan.warnings if p.code == "nothing-taken"] == [
        ("nothing-taken", "environment CITYGATE__BROKERS__MILNO")
    ]


def test_a_box_takes_the_profile_of_its_base_away(tmp_path: Path) -> None:
    (tmp_path / "cities").mkdir()
    (tmp_path / "cities" / "milan.yaml").write_text("city: milano\nbroker: {tenant: two}\n")
    base = BASE.replace("{url", "{use: cities/milan, url").replace("tenant: one, ", "")
    assert plan_of(tmp_path, base=base, citygate=BOX).config.brokers["milano"].tenant == "two"
    plan = plan_of(tmp_path, base=base, citygate=f"{BOX}brokers: {{milano: {{use: null}}}}\n")
    assert (plan.config.brokers["milano"].use, plan.config.brokers["milano"].tenant) == (None, None)


@pytest.mark.parametrize(
    ("base", "place"),
    [
        (BASE.rstrip("\n"), ("base.yaml", 13)),
        ("", ("citygate.yaml", 1)),
        ("# all of it\n", ("citygate.yaml", 1)),
    ],
)
def test_a_base_that_was_cut_off_or_emptied_is_warned_of(tmp_path: Path, base: str, place: tuple[str, int]) -> None:
    box = "base: base.yaml\nversion: 1\ngateway: {id: gw-1, city: milano, location: [9.1, 45.5]}\n"
    found = [problem for problem in plan_of(tmp_path, base=base, citygate=box).warnings if problem.code == "cut-off"]
    assert [(Path(problem.file).name, problem.line) for problem in found] == [place]


def test_what_was_taken_away_is_not_counted(tmp_path: Path) -> None:
    box = f"{BOX}links: {{roof: {{devices: {{meter-13: null}}}}}}\n"
    assert plan_of(tmp_path, base=BASE, citygate=box).found == "1 link, 1 device, 2 brokers"


def test_a_variable_wins_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYGATE__BROKERS__MILANO__TENANT", "three")
    assert plan_of(tmp_path, base=BASE, citygate=BOX).config.brokers["milano"].tenant == "three"


def fleet(folder: Path, *, base: str = BASE, more: str = "") -> Path:
    """A base in a folder beside the boxes', with a template and a city profile of its own; returns the box."""
    template = "extends: acme/meter\n"
    base = base.replace("unit_id: 2", "unit_id: 2").replace("template: acme/meter, unit_id: 2", "template: own/meter")
    base = base.replace("tenant: one", "use: cities/own, tls: {ca: tls/ca.pem}").replace(
        "max_size", "path: b.db, max_size"
    )
    written(folder / "fleet", base=base, templates__own__meter=template, cities__own="broker: {tenant: own}\n")
    return written(folder / "boxes" / "gw-1", citygate=f"base: ../../fleet/base.yaml\ngateway: {{id: gw-1}}\n{more}")


def test_what_lies_beside_the_base_is_found_and_its_paths_begin_there(tmp_path: Path) -> None:
    folder = fleet(tmp_path, more="brokers: {porto: {tls: {ca: own.pem}}}\n")
    plan = make_plan(folder, BenchRegistry(), with_secrets=False)
    assert plan.devices["meter-13"].template_file == str(tmp_path / "fleet/templates/own/meter.yaml")
    milano, porto = plan.config.brokers["milano"], plan.config.brokers["porto"]
    assert (milano.tenant, milano.tls.ca) == ("own", str(tmp_path / "fleet/tls/ca.pem"))
    assert porto.tls.ca == str(folder / "own.pem")
    assert plan.config.buffer.path == str(tmp_path / "fleet/b.db") == str(box.buffer_path(folder))
    assert type(milano.tls.ca) is str

    written(folder, templates__own__meter="extends: acme/meter\nvendor: of the box\n")
    assert make_plan(folder, BenchRegistry(), with_secrets=False).devices["meter-13"].template.vendor == "of the box"


def test_what_lies_beside_the_nearer_base_comes_first(tmp_path: Path) -> None:
    folder = fleet(tmp_path)
    written(
        tmp_path / "city",
        base="base: ../fleet/base.yaml\n",
        templates__own__meter="extends: acme/meter\nvendor: city\n",
    )
    written(tmp_path / "city", cities__own="broker: {tenant: of-the-city}\n")
    written(folder, citygate="base: ../../city/base.yaml\ngateway: {id: gw-1}\n")
    plan = make_plan(folder, BenchRegistry(), with_secrets=False)
    assert plan.devices["meter-13"].template.vendor == "city"
    assert plan.config.brokers["milano"].tenant == "of-the-city"


def test_models_beside_a_base_are_known_and_the_nearer_ones_win(tmp_path: Path) -> None:
    folder, brief = fleet(tmp_path), REPOSITORY / "config" / "models" / "BenchObserved.yaml"
    for place in (tmp_path / "fleet", folder):
        write_model(read_brief(brief), place / "models", brief.read_text())
        found = make_plan(folder, BenchRegistry(), with_secrets=False).models.type("BenchObserved")
        assert found is not None
        assert found.origin == str(place / "models")


def test_a_box_is_read_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fleet(tmp_path)
    (tmp_path / "etc").symlink_to(folder)  # as a roll-out may do it: `..` leads out of the true folder
    monkeypatch.chdir(folder)
    for path in (folder, Path(), Path("citygate.yaml"), tmp_path / "etc"):
        assert make_plan(path, BenchRegistry(), with_secrets=False).devices.keys() == {"meter-12", "meter-13"}


def brokers_of(folder: Path) -> dict[str, str]:
    found = box.names(folder)
    assert found is not None
    return found.brokers


def test_the_verbs_that_glance_at_the_files_see_the_base(tmp_path: Path) -> None:
    folder = fleet(tmp_path, more="brokers: {porto: null, lisboa: {was: porto, url: 'https://lisboa.example'}}\n")
    assert brokers_of(folder) == {"milano": "", "lisboa": "porto"}
    renamed = BASE.replace("milano: {url", "milano: {was: old, url")
    written(tmp_path / "more", base=renamed, citygate=f"{BOX}brokers: {{milano: {{tenant: two}}}}\n")
    assert brokers_of(tmp_path / "more") == {"milano": "old", "porto": ""}
    written(folder, citygate="base: ../../fleet/base.yaml\nbuffer: {path: mine.db}\n")
    assert box.buffer_path(folder) == folder / "mine.db"
    assert brokers_of(folder) == {"milano": "", "porto": ""}
    for null in ("buffer: {path: null}", "buffer: ~"):
        written(folder, citygate=f"base: ../../fleet/base.yaml\ngateway: {{id: gw-1}}\n{null}\nbrokers: null\n")
        plan = make_plan(folder, BenchRegistry(), with_secrets=False)
        assert str(box.buffer_path(folder)) == plan.config.buffer.path == "/var/lib/citygate/buffer.db"
        assert (brokers_of(folder), list(plan.config.brokers)) == ({}, [])


def test_a_device_is_put_into_the_file_of_the_box_and_the_base_stays_as_it_is(tmp_path: Path) -> None:
    folder = written(tmp_path, base=BASE, citygate=BOX)
    assert link_names(folder) == ["roof"]
    assert put_device(folder, "roof", "meter-14", {"template": "acme/meter", "unit_id": 3}) == folder / "citygate.yaml"
    assert (folder / "base.yaml").read_text() == BASE
    assert list(plan_of(folder).devices) == ["meter-12", "meter-13", "meter-14"]
    for device, said in (("meter-12", "has a device meter-12 already"), ("meter-14", "already")):
        with pytest.raises(ConfigError, match=said):
            put_device(folder, "roof", device, {"template": "acme/meter"})
    with pytest.raises(ConfigError, match="is there already: its keys are changed in"):
        put_device(folder, "roof", "meter-15", {"template": "acme/meter"}, {"driver": "bench"})


@pytest.mark.parametrize(
    "links", ["null", "{roof: null}", "{roof: {devices: ~}}", "{roof: {devices: {meter-12: null}}}"]
)
def test_a_null_is_not_replaced_by_a_device_since_all_that_it_takes_away_would_be_back(
    tmp_path: Path, links: str
) -> None:
    text = f"{BOX}links: {links}\n"
    with pytest.raises(ConfigError, match=r"is null in citygate.yaml: remove that line first"):
        put_device(written(tmp_path, base=BASE, citygate=text), "roof", "meter-12", {"template": "acme/meter"})
    assert (tmp_path / "citygate.yaml").read_text() == text


def test_a_null_of_a_file_without_a_base_takes_a_device_as_ever(tmp_path: Path) -> None:
    text = BASE.replace("{city", "{id: gw-1, city").partition("links:")[0] + "links: ~\n"
    folder = written(tmp_path, citygate=text)
    put_device(folder, "roof", "m", {"template": "acme/meter"}, {"driver": "bench", "host": "h"})
    assert list(plan_of(folder).devices) == ["m"]


@contextlib.contextmanager
def kept(folder: Path, at: Path) -> Iterator[Unpacked]:
    its = LastGood(at / "last-good.json")
    its.write(snapshot(folder), config=str(folder / "citygate.yaml"), at=datetime.now(UTC))
    with contextlib.closing(Unpacked(its.read())) as copy:
        yield copy


def test_the_last_good_config_has_its_bases_and_what_lies_beside_them(tmp_path: Path) -> None:
    folder = fleet(tmp_path)
    with kept(folder, tmp_path) as copy:
        (tmp_path / "fleet").rename(tmp_path / "gone")
        plan = make_plan(copy.main, BenchRegistry(), with_secrets=False, home=folder)
        assert plan.devices.keys() == {"meter-12", "meter-13"}
        assert plan.config.brokers["milano"].tls.ca == str(tmp_path / "fleet/tls/ca.pem"), "where the operator has it"
        assert plan.config.buffer.path == str(tmp_path / "fleet/b.db")


def test_the_last_good_config_is_not_mixed_with_the_base_of_today(tmp_path: Path) -> None:
    folder = fleet(tmp_path)
    with kept(folder, tmp_path) as copy:
        (tmp_path / "fleet/base.yaml").write_text("broken: [\n")
        assert make_plan(copy.main, BenchRegistry(), with_secrets=False, home=folder).devices.keys() == {
            "meter-12",
            "meter-13",
        }
        (copy.folder / "citygate.yaml").write_text("base: ../../fleet/base.yaml\ngateway: {}\n")
        with pytest.raises(ConfigError) as error:
            make_plan(copy.main, BenchRegistry(), with_secrets=False, home=folder)
        [problem] = [copy.shown(problem) for problem in error.value.problems if problem.severity == "error"]
        assert problem.file == "last good config: citygate.yaml"

        [base] = copy.folder.rglob("base.yaml")
        base.write_text("broken: [\n")
        (copy.folder / "citygate.yaml").write_text("base: ../../fleet/base.yaml\n")
        with pytest.raises(ConfigError) as error:
            make_plan(copy.main, BenchRegistry(), with_secrets=False, home=folder)
        [problem] = [copy.shown(problem) for problem in error.value.problems if problem.severity == "error"]
        assert problem.file == f"last good config: {folder}/../../fleet/base.yaml"


def test_a_changed_base_is_another_config_to_keep_and_one_that_is_gone_none(tmp_path: Path) -> None:
    folder = fleet(tmp_path)
    before = snapshot(folder)
    assert snapshot(folder) == before
    (tmp_path / "fleet/base.yaml").write_text(BASE)
    assert snapshot(folder) != before
    (tmp_path / "fleet/base.yaml").unlink()
    with pytest.raises(NotKept, match="cannot be read"):
        snapshot(folder)


def test_each_value_is_shown_with_the_place_that_gave_it_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BASE.replace("tenant: one", "tenant: one, auth: {bearer: !secret milano}")
    over = "brokers: {milano: {tenant: two}, porto: {auth: {bearer: in-clear-text-1}}}\nx-own: 1\n"
    folder = written(
        tmp_path, base=base.replace("porto: {", "porto: {auth: {bearer: older-text-22}, "), citygate=BOX + over
    )
    monkeypatch.setenv("CITYGATE_SECRET_MILANO", "text-of-milano")
    monkeypatch.setenv("CITYGATE__HTTP__TOKEN", "token-in-clear-3")
    loaded = load(folder, lambda name: find_driver(BenchRegistry(), name), environment=Environment())
    found = {
        ".".join(line.path): (line.value, Path(str(line.place).partition(":")[0]).name, line.place.line)
        for line in lines(loaded)
    }
    assert found["gateway.id"] == ("gw-1", "citygate.yaml", 2)
    assert found["gateway.city"] == ("milano", "base.yaml", 2)
    assert found["brokers.milano.tenant"] == ("two", "citygate.yaml", 3)
    assert found["brokers.milano.auth.bearer"] == ("!secret milano", "base.yaml", 12)
    assert found["brokers.porto.auth.bearer"] == ("•" * 15, "citygate.yaml", 3)
    assert found["http.token"][0] == "•••", "given by a variable"
    assert not {"base", "x-own"} & found.keys()
    shown = "\n".join(line for source in loaded.sources.values() for line in source.lines)
    assert "older-text-22" not in shown, "what was laid over is a secret too"


def test_a_secret_that_a_base_gives_twice_is_hidden_both_times(tmp_path: Path) -> None:
    base = BASE.replace("tenant: one", "auth: {bearer: first-text-111, bearer: second-text-22}")
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, base=base, citygate=BOX + "publish: {licence: x}\n")
    assert "duplicate-key" in {problem.code for problem in error.value.problems}
    shown = "".join(problem.source for problem in error.value.problems)
    assert "-text-" not in shown
