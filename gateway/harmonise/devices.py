"""The box and its sensors as Device entities: tables like any other, fed by sets that the daemon makes of what it knows.

The set of a sensor is logged under `@NAME`, that of the box under `@`: names that no device of the config can have. So
Device entities take the way of all readings, over log and lanes, to every city.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import replace
from datetime import UTC, datetime, time
from typing import Any

from gateway.config.model import CityProfile
from gateway.harmonise.compile import BareDevice, DevicePlan, Mapping, compile_device, device_id_pattern, fill
from gateway.models.catalogue import Catalogue
from gateway.sdk.config import DeviceConfig
from gateway.sdk.errors import Problem
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point, Quality, Reading, ReadingSet, Value
from gateway.sdk.template import EntityMapping, Template, TemplatePoint

MARK = "@"
_POINTS = {
    "state": "text",
    "last_value_at": "text",
    "battery": "battery_level",
    "rssi": "rssi",
    "firmware": "firmware_version",
}
_ATTRIBUTES = {
    "deviceState": "state",
    "dateLastValueReported": "last_value_at",
    "batteryLevel": "battery",
    "rssi": "rssi",
    "firmwareVersion": "firmware",
}
# The closed enum of the Device model by what we measure. It has no word for gases, vibration, radiation or fields.
_CONTROLLED = {
    "airPollution": "pm1 pm25 pm4 pm10 total_suspended_particles black_carbon particle_count co co2 no no2 nox o3 so2 h2s nh3 "
    "ch4 hcho c6h6 voc voc_index nox_index air_quality_index",
    "temperature": "temperature air_temperature surface_temperature soil_temperature water_temperature dew_point "
    "feels_like_temperature internal_temperature flow_temperature return_temperature",
    "humidity": "humidity absolute_humidity leaf_wetness",
    "atmosphericPressure": "atmospheric_pressure sea_level_pressure",
    "pressure": "pressure water_pressure",
    "windSpeed": "wind_speed wind_gust wind_vector",
    "windDirection": "wind_direction",
    "precipitation": "precipitation precipitation_total precipitation_rate raining hail_rate",
    "solarRadiation": "solar_irradiance uv_index",
    "light": "illuminance light_level luminous_flux",
    "weatherConditions": "snow_height visibility lightning_count lightning_distance",
    "noiseLevel": "noise_level noise_laeq noise_las noise_lamax noise_lamin noise_lceq noise_lzeq",
    "soilMoisture": "soil_moisture soil_tension",
    "conductivity": "soil_conductivity water_conductivity",
    "pH": "soil_ph water_ph",
    "orp": "water_orp",
    "turbidity": "water_turbidity water_turbidity_fnu",
    "salinity": "water_salinity soil_salinity",
    "tds": "water_dissolved_solids",
    "tss": "water_suspended_solids",
    "freeChlorine": "water_chlorine",
    "waterLevel": "water_level water_depth wave_height",
    "waterFlow": "water_flow",
    "waterConsumption": "water_volume",
    "gasConsumption": "gas_volume gas_flow",
    "energy": "active_energy active_energy_import active_energy_export reactive_energy reactive_energy_import "
    "reactive_energy_export apparent_energy heat_energy",
    "power": "active_power apparent_power reactive_power power_factor heat_power power_demand voltage current frequency",
    "fillingLevel": "fill_level level distance",
    "weight": "weight",
    "trafficFlow": "vehicle_count vehicle_count_total vehicle_speed bicycle_count lane_occupancy",
    "occupancy": "occupied presence people_count people_count_in people_count_out people_count_total free_places "
    "occupied_places total_places radio_device_count",
    "motion": "motion moved acceleration vibration_velocity",
    "location": "latitude longitude altitude",
    "speed": "speed",
    "heading": "course",
    "smoke": "smoke fire",
    "gateOpening": "door_open",
}
_WORD_OF = {quantity: word for word, of in _CONTROLLED.items() for quantity in of.split()}
_PROTOCOLS = {
    "chirpstack": "lora",
    "tts": "lora",
    "semtech-udp": "lora",
    "lora-modem": "lora",
    "ble": "bluetooth LE",
    "mqtt": "mqtt",
}


def sensor_table(
    device: DevicePlan,
    tables: Sequence[Mapping],
    *,
    driver: str,
    gateway_id: str,
    city: str,
    profile: CityProfile,
    models: Catalogue | None = None,
) -> tuple[tuple[Mapping, ...], tuple[Problem, ...]]:
    """The table of a sensor's own Device entity; none when the operator maps an entity of that id by hand.

    Args:
        tables: what the sensor feeds; their entities are what it controls.
    """
    static: dict[str, Any] = {
        "deviceCategory": ["meter" if _is_meter(device) else "sensor"],
        "controlledProperty": controlled(device.points.values()),
        "name": device.name,
        "description": f"{device.template.vendor} {device.template.model}",
    }
    if tables:
        static["controlledAsset"] = sorted({table.entity_id for table in tables})
    if driver in _PROTOCOLS:
        static["supportedProtocol"] = [_PROTOCOLS[driver]]
    calibrated = [one.valid_from for one in device.config.calibrate.values() if one.valid_from]
    if calibrated:
        static["dateLastCalibration"] = (
            datetime.combine(max(calibrated), time(), UTC).isoformat().replace("+00:00", "Z")
        )
    found, problems = _compile(device.name, device.link, device.location, static, gateway_id, city, profile, models)
    taken = {table.entity_id for table in tables}
    return tuple(table for table in found if table.entity_id not in taken), problems


def box_table(
    devices: Iterable[str],
    *,
    gateway_id: str,
    name: str,
    location: tuple[float, float] | None,
    version: str,
    city: str,
    profile: CityProfile,
    models: Catalogue | None = None,
) -> tuple[tuple[Mapping, ...], tuple[Problem, ...]]:
    """The table of the box's own Device entity. There is no type for gateways: it is a network device that controls its sensors."""
    pattern = device_id_pattern(profile)
    names = {"Type": "Device", "city": city, "gateway": gateway_id}
    sensors = [fill(pattern, {**names, "device": device}) for device in devices]
    static: dict[str, Any] = {
        "deviceCategory": ["network"],
        "controlledProperty": ["power"],  # mandatory and closed, without a word for what a gateway does
        "name": name or gateway_id,
        "softwareVersion": f"citygate {version}",
    }
    if sensors:
        static["controlledAsset"] = sorted(sensors)
    # its name in the id is that of the gateway, also in a pattern that has only {device}
    found, problems = _compile(gateway_id, "", location, static, gateway_id, city, profile, models)
    return tuple(replace(table, device=MARK) for table in found), problems


def _compile(
    name: str,
    link: str,
    location: tuple[float, float] | None,
    static: MappingOf[str, Any],
    gateway_id: str,
    city: str,
    profile: CityProfile,
    models: Catalogue | None,
) -> tuple[tuple[Mapping, ...], tuple[Problem, ...]]:
    entity = EntityMapping.model_validate(
        {"type": "Device", "id": device_id_pattern(profile), "attributes": _ATTRIBUTES, "static": dict(static)}
    )
    template = Template(
        vendor="citygate",
        model="device",
        points={point: TemplatePoint(quantity=quantity) for point, quantity in _POINTS.items()},
        entity=entity,
    )
    points = {point: Point(point, quantity, quantities()[quantity].unit) for point, quantity in _POINTS.items()}
    told = BareDevice(
        name,
        link,
        DeviceConfig.model_construct(template=template, calibrate={}, entity=None),
        template,
        points,
        location,
    )
    tables, problems = compile_device(told, gateway_id=gateway_id, city=city, profile=profile, models=models)
    return tuple(replace(table, device=MARK + name, unused=()) for table in tables), problems


def controlled(points: Iterable[Point]) -> list[str]:
    """The words of the Device model for what these points measure; never empty, because the model asks for one."""
    words = sorted({_WORD_OF[point.quantity] for point in points if point.quantity in _WORD_OF})
    return words or ["power"]


def _is_meter(device: DevicePlan) -> bool:
    measured = {point.quantity for point in device.points.values()}
    return bool(measured & {"active_energy_import", "active_energy", "water_volume", "gas_volume", "heat_energy"})


def sensor_set(
    device: DevicePlan,
    latest: MappingOf[str, Value],
    *,
    state: str,
    reason: str,
    last_value_at: datetime | None,
    now: datetime,
) -> ReadingSet:
    """What the gateway knows about a sensor now, as a set.

    Args:
        latest: point -> latest good value; battery, radio and firmware are looked up by their quantity.
        state, reason: as in the health records (`bad`, `timeout`).
    """
    by_quantity = {device.points[point].quantity: value for point, value in latest.items() if point in device.points}
    values: dict[str, Value | None] = {
        "state": f"{state}: {reason}" if reason else state,
        "last_value_at": None if last_value_at is None else last_value_at.astimezone(UTC).isoformat(),
        "battery": _percent(device, latest),
        "rssi": by_quantity.get("rssi"),
        "firmware": by_quantity.get("firmware_version"),
    }
    return _told_set(MARK + device.name, values, now)


def box_set(*, state: str, reason: str, last_value_at: datetime | None, now: datetime) -> ReadingSet:
    """What the box knows about itself now."""
    values: dict[str, Value | None] = {
        "state": f"{state}: {reason}" if reason else state,
        "last_value_at": None if last_value_at is None else last_value_at.astimezone(UTC).isoformat(),
    }
    return _told_set(MARK, values, now)


def _percent(device: DevicePlan, latest: MappingOf[str, Value]) -> Value | None:
    for name, value in latest.items():
        point = device.points.get(name)
        if point is not None and point.quantity == "battery_level" and isinstance(value, int | float):
            return value * 100 if point.unit == "C62" else value
    return None


def _told_set(name: str, values: MappingOf[str, Value | None], now: datetime) -> ReadingSet:
    known = {point: value for point, value in values.items() if value is not None}
    return ReadingSet(name, tuple(Reading(point, value, now, Quality.GOOD) for point, value in known.items()))
