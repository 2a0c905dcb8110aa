"""Entry points -> drivers and simulators. Only what a config names is imported; idle libraries cost no memory."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import SDK_VERSION, Driver
from gateway.sdk.errors import CitygateError, said
from gateway.sdk.simulator import Simulator
from gateway.sdk.template import Template

DRIVERS = "citygate.drivers"
SIMULATORS = "citygate.simulators"


class DriverUnavailable(CitygateError):
    """A driver cannot be had. Its links stay off, everything else runs.

    Args:
        message: what is wrong.
        remedy: what to do now.
        unknown: no installed package offers this name at all (a spelling mistake rather than a broken package).
    """

    def __init__(self, message: str, remedy: str, *, unknown: bool = False) -> None:
        self.remedy = remedy
        self.unknown = unknown
        super().__init__(message)


class Registry:
    """The drivers and simulators that installed packages offer. Looking up names imports nothing."""

    def __init__(self) -> None:
        self._offers = {group: _offers(group) for group in (DRIVERS, SIMULATORS)}
        self._loaded: dict[tuple[str, str], Any] = {}

    def names(self) -> tuple[str, ...]:
        """Names of all drivers on offer."""
        return tuple(sorted(self._offers[DRIVERS]))

    def origin(self, name: str) -> str:
        """Which package a driver comes from, for lists and errors."""
        return ", ".join(_origin(offer) for offer in self._offers[DRIVERS].get(name, ()))

    def driver(self, name: str) -> Driver[Any]:
        """The driver of this name.

        Raises:
            DriverUnavailable: nobody offers it, two packages do, its import fails, or it wants another SDK.
        """
        driver: Driver[Any] = self._load(DRIVERS, name, "driver")
        version = getattr(driver, "sdk_version", None)
        if version != SDK_VERSION:
            raise DriverUnavailable(
                f"driver {name} is written for SDK version {version}, this gateway has {SDK_VERSION}",
                f"install a version of {self.origin(name)} that fits this gateway",
            )
        if lacking := _lacking(driver):
            raise DriverUnavailable(
                f"driver {name} from {self.origin(name)} is none: {lacking}", "report it to the author of the package"
            )
        return driver

    def simulator(self, name: str) -> Simulator:
        """The simulator for the devices of this driver.

        Raises:
            DriverUnavailable: as for `driver`.
        """
        simulator: Simulator = self._load(SIMULATORS, name, "simulator")
        return simulator

    def _load(self, group: str, name: str, what: str) -> Any:
        if (group, name) in self._loaded:
            return self._loaded[group, name]
        offers = self._offers[group].get(name, ())
        if not offers:
            known = ", ".join(sorted(self._offers[group]))
            raise DriverUnavailable(
                f"no {what} named {name}", f"installed: {known}; is a package missing?", unknown=True
            )
        if len(offers) > 1:
            names = " and ".join(_origin(offer) for offer in offers)
            raise DriverUnavailable(f"{what} {name} is offered by {names}", "uninstall one of them")
        try:
            loaded = offers[0].load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a foreign package may raise anything while it is imported, or ask to exit
            raise DriverUnavailable(
                f"{what} {name} from {_origin(offers[0])} cannot be imported: {type(error).__name__}: {said(error)}",
                f"install what it needs{_extra(offers[0])}, or reinstall the package",
            ) from error
        self._loaded[group, name] = loaded
        return loaded


def _lacking(driver: Any) -> str:
    """What keeps this from being a driver; "" when nothing does."""
    for attribute, fits in _SHAPE.items():
        try:
            if not fits(getattr(driver, attribute)):
                return f"its {attribute} is not what it should be"
        except Exception as error:  # noqa: BLE001 - a property of foreign code
            return f"its {attribute} cannot be had: {type(error).__name__}: {said(error)}"
    return ""


_SHAPE: dict[str, Callable[[Any], bool]] = {
    "config_model": lambda its: issubclass(its, LinkConfig),
    "template_model": lambda its: issubclass(its, Template),
    "templates": lambda its: callable(its.joinpath) and callable(its.iterdir),
    "run": callable,
    "decode": callable,
}


def _offers(group: str) -> dict[str, tuple[importlib.metadata.EntryPoint, ...]]:
    found: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        # One package can stand on the path twice (a wheel and its source tree); that is no conflict.
        found.setdefault(entry.name, {})[f"{_origin(entry)}={entry.value}"] = entry
    return {name: tuple(entries.values()) for name, entries in found.items()}


def _extra(entry: importlib.metadata.EntryPoint) -> str:
    """Our own drivers name their libraries as an extra after their folder: drivers.lora.… needs citygate[lora]."""
    package, _, rest = entry.module.partition(".")
    return f": pip install 'citygate[{rest.partition('.')[0]}]'" if package == "drivers" else ""


def _origin(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
