"""Every kind, an own model and a whole config as a broker gets them: one that refuses what the specification refuses."""

from pathlib import Path

from gateway.forward.checked import Checked
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.harmonise.entity import harmonise
from gateway.models.extension import read_brief, write_model
from gateway.models.validator import Validator
from gateway.plan import make_plan
from tests.gateway.harmonise.test_kinds import READINGS, entities
from tests.support.bench_driver import BenchRegistry
from tests.support.ngsi import ROOT
from tests.support.strict_broker import StrictBroker

BRIEF = ROOT / "config" / "models" / "BenchObserved.yaml"
NOON_US = 1_780_315_200_000_000
CONFIG = """\
version: 1
gateway: {id: gw-1, city: milano, location: [9.1590, 45.5030]}
buffer: {path: /tmp/buffer.db}
links:
  air:
    driver: bench
    host: 192.0.2.1
    devices:
      air-1:
        template: acme/air
        entity:
          type: BenchObserved
          attributes: {ATTRIBUTE: POINT}
          static: {benchState: ok}
brokers:
  milano: {url: "https://broker.example"}
"""


async def test_every_kind_is_taken_in_one_go() -> None:
    batch = [entity for kind in READINGS for entity in entities(kind)]
    async with StrictBroker().serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url=url))
        outcome = await broker.state(batch)
        await broker.close()
    assert (dict(outcome.refused), dict(outcome.later)) == ({}, {})
    assert outcome.accepted == {entity.id for entity in batch}
    assert len(outcome.accepted) == 22


async def test_an_own_model_in_models_beside_the_config_is_sent_like_any_other(tmp_path: Path) -> None:
    write_model(read_brief(BRIEF), tmp_path / "models", BRIEF.read_text())
    template = make_plan(_written(tmp_path, "temperature: null"), BenchRegistry()).devices["air-1"].template
    point = next(iter(template.points))
    plan = make_plan(_written(tmp_path, f"description: {{point: {point}, pattern: 'is {{value}}'}}"), BenchRegistry())
    [table] = plan.brokers["milano"].mappings["air-1"]
    entity = harmonise(table, {point: (1.5, NOON_US)})
    assert entity.context == "https://models.milano.example/furniture/context.jsonld"
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = Checked(NgsiLdBroker(NgsiLdSettings(url=url)), Validator(plan.models))
        outcome = await broker.state([entity])
        await broker.close()
    assert outcome.accepted == {"urn:ngsi-ld:BenchObserved:milano:gw-1:air-1"}


def _written(folder: Path, mapping: str) -> Path:
    (folder / "citygate.yaml").write_text(CONFIG.replace("{ATTRIBUTE: POINT}", f"{{{mapping}}}"))
    return folder


LANGUAGE = """\
          type: TrafficFlowObserved
          attributes:
            intensity: {point: POINT, gain: 2, unit: C62, sub: {reliability: {value: 0.7}}}
            congested: {point: POINT, translate: {1: true, 2: false}}
            averageVehicleSpeed: null
          static: {laneId: 1, reversedLane: false, laneDirection: forward, location: [9.2, 45.5], name: 007}
          period: 5 min
          more:
            no-2: {type: DeviceMeasurement, attributes: {numValue: POINT}, static: {unit: P1}}
"""


def test_the_operators_file_carries_the_whole_language(tmp_path: Path) -> None:
    point = "pm2_5"
    text = (
        CONFIG.partition("          type: BenchObserved")[0]
        + LANGUAGE.replace("POINT", point)
        + "publish: {provider: Comune di Milano}\nbrokers: {}\n"
    )
    (tmp_path / "citygate.yaml").write_text(text)
    plan = make_plan(tmp_path, BenchRegistry())
    traffic, measurement = plan.read_api["air-1"]
    entity = harmonise(traffic, {point: (2, NOON_US)})
    values = {name: attribute.value for name, attribute in entity.attributes.items()}
    assert values["intensity"] == 4
    assert entity.attributes["intensity"].sub["reliability"].value == 0.7
    assert values["congested"] is False
    assert (values["laneId"], values["reversedLane"], values["name"]) == (1, False, "007")
    assert values["location"]["coordinates"] == [9.2, 45.5]
    assert values["dataProvider"] == "Comune di Milano"
    assert (values["dateObservedTo"] - values["dateObservedFrom"]).total_seconds() == 300
    assert measurement.entity_id.endswith(":air-1:no-2")
