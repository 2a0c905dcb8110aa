"""The operator's file, its fragments, templates and city profiles -> one checked config, or every problem with its place.

The drivers' models are given: the loader imports no driver.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from gateway.config.bases import BASE, Bases, Home, Laid, is_null, read_bases, tidy
from gateway.config.explain import known_or_near, locate
from gateway.config.hiding import hide, shown_lines
from gateway.config.migrate import migrate
from gateway.config.model import NAME, VERSION, CityProfile, Config, GatewayConfig
from gateway.config.secrets import Held, Secrets, resolve, without_secrets
from gateway.config.templates import LoadedTemplate, Shelf, Templates, yaml_files
from gateway.config.tree import (
    Entry,
    Items,
    Map,
    Node,
    Place,
    Scalar,
    Source,
    counted,
    find,
    merge,
    overlay,
    override,
    place_problem,
    read_tree,
)
from gateway.config.validate import KeyPath, validate
from gateway.environment import NOTHING, OVERRIDE, Environment
from gateway.sdk.config import CONFIG_FOLDER, LinkConfig
from gateway.sdk.driver import Driver
from gateway.sdk.errors import Problem
from gateway.sdk.files import is_closed, is_file, listed

MAIN_FILE = "citygate.yaml"
FRAGMENTS = "conf.d"
ASIDE = "x-"  # top-level keys that begin so are left alone: a place for anchors


@dataclass(frozen=True, slots=True)
class NoDriver:
    """What the caller gives instead of a driver that cannot be had.

    Attributes:
        unknown: nobody offers the name, so it is an error in the file; else the link stays off and the rest runs.
    """

    fault: str
    remedy: str
    unknown: bool = False
    names: tuple[str, ...] = ()


FindDriver = Callable[[str], Driver[Any] | NoDriver]


@dataclass(frozen=True, slots=True)
class LoadedLink:
    """One link of the file. `config` is None when it has errors or its driver cannot be had (then `fault` says so); `sound`
    is what can be said of it all the same: it without the devices that have errors."""

    name: str
    driver_name: str
    driver: Driver[Any] | None
    config: LinkConfig | None
    devices: tuple[str, ...]
    templates: Mapping[str, LoadedTemplate]
    fault: str = ""
    remedy: str = ""
    sound: LinkConfig | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that the files say. `config` is None when the part outside links has errors.

    Attributes:
        gateway: this box, also when something else has errors; None when it has some itself.
        profiles: city profile by broker (an empty one where none is used), with the tree of its file.
        files: main file, fragments, bases.
        folders: where templates, profiles and models of one's own are: beside the config, then beside its bases.
        root: the merged tree, to place further problems.
        sources: main file, fragments and profiles by name, their secrets hidden.
        secrets: the texts of all secrets that are known, to be hidden wherever something is shown.
        texts: those that `!secret` named, by name.
        with_secrets: whether they were looked up: this is the box that the config is for.
        places: where those of `texts` were found.
        untold: path -> name of secrets whose text is not known here.
        environment: what else the process was told when they were read.
        found: how many links, devices and brokers there are, with errors or without.
    """

    config: Config | None
    gateway: GatewayConfig | None
    links: Mapping[str, LoadedLink]
    profiles: Mapping[str, tuple[CityProfile, Map]]
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    root: Map
    sources: Mapping[str, Source] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    with_secrets: bool = True
    places: Mapping[str, str] = field(default_factory=dict)
    untold: Mapping[KeyPath, str] = field(default_factory=dict)
    environment: Environment = NOTHING
    found: str = ""


def config_files(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """Main file and fragments of `-c DIR` or `-c FILE`."""
    main = path / MAIN_FILE if os.path.isdir(path) else path  # asks no rights
    folder = main.parent / FRAGMENTS
    names = [file.name for file in listed(folder)]
    return main, tuple(folder / name for name in names if name.endswith((".yaml", ".yml")) and not name.startswith("."))


def files_of(path: Path, home: Path | None = None) -> tuple[Path, ...]:
    """All that `-c` means: main file, fragments and bases, as far as they can be read.

    Args:
        home: see `load`.
    """
    main, fragments = config_files(path)
    at = _home(main, home)
    return (main, *fragments, *map(at.here, _bases_of(main, fragments, at).files))


def folders_of(path: Path) -> tuple[Path, ...]:
    """Where templates, profiles and models of one's own are: beside the config, then beside its bases."""
    main, fragments = config_files(path)
    return _bases_of(main, fragments, Home(main.parent)).folders(Home(main.parent))


def _home(main: Path, home: Path | None) -> Home:
    return Home(main.parent) if home is None else Home(home, main.parent)


def _bases_of(main: Path, fragments: tuple[Path, ...], at: Home) -> Bases:
    ignored: list[Problem] = []
    root = read_tree(main, ignored)
    for fragment in fragments:
        root = merge(root, read_tree(fragment, ignored), ignored)
    return read_bases(root, at, (main, *fragments), ignored)


def load(
    path: Path,
    find_driver: FindDriver,
    *,
    with_secrets: bool = True,
    environment: Environment = NOTHING,
    home: Path | None = None,
    remembered: Mapping[str, str] | None = None,
    held: Held | None = None,
    shelf: Shelf | None = None,
) -> Loaded:
    """Read and check everything. Raises nothing: what is wrong is in `problems`.

    Args:
        with_secrets: False does not look secrets up and does not complain about them.
        environment: for overrides and secrets.
        home: the operator's folder, when the files are a copy that lies elsewhere: secrets are there.
        remembered: texts of secrets by name, for those that are not to be had any more.
        held: asked of those that are not to be had here.
        shelf: templates that were read for other configs.
    """
    return _Load(path, find_driver, with_secrets, environment, home, remembered or {}, held, shelf).run()


@dataclass
class _Load:
    """One pass over all files, gathering problems."""

    path: Path
    find_driver: FindDriver
    with_secrets: bool
    environment: Environment
    home: Path | None
    remembered: Mapping[str, str]
    held: Held | None = None
    shelf: Shelf | None = None
    problems: list[Problem] = field(default_factory=list)
    hidden: frozenset[str] | set[str] = frozenset()  # codes of what follows from another problem

    def run(self) -> Loaded:
        main, fragments = config_files(self.path)
        self.folder = main.parent
        self.at = _home(main, self.home)
        token = CONFIG_FOLDER.set(self.home or self.folder)
        try:
            return self._run(main, fragments)
        finally:
            CONFIG_FOLDER.reset(token)

    def _run(self, main: Path, fragments: tuple[Path, ...]) -> Loaded:
        root = read_tree(main, self.problems)
        trees = [root]
        readable = bool(root.entries) or not self.problems  # else "missing key" would only distract
        for fragment in fragments:
            trees.append(read_tree(fragment, self.problems))
            root = merge(root, trees[-1], self.problems)
        bases = read_bases(root, self.at, (main, *fragments), self.problems)
        self.folders = tuple(tidy(self.at.here(folder)) for folder in bases.folders(self.at))
        self.templates = Templates([folder / "templates" for folder in self.folders], self.problems, self.shelf)
        self._closed()
        files = self._laid_on(bases, root)
        root = migrate(override(files, self.environment.overrides, self.problems), self.problems)
        self.ends = dict(filter(None, map(_end, (*trees, *bases.trees))))
        profiles: dict[str, tuple[CityProfile, Map]] = {}
        root = self._with_profiles(root, profiles)
        if self.laid.bases:
            root = self.laid.settle(root, files)
            self.problems += self.laid.doubts(root)
        self.found = counted(root)
        secrets = Secrets((self.home or self.folder) / "secrets", self.environment, self.remembered, self.held)
        as_written = root
        root, untold = resolve(root, secrets if self.with_secrets else None, self.problems)
        links = self._links(root)
        secrets.known |= hide(self._parts(as_written, links))
        sources = {
            tree.place.source.name: tree.place.source
            for tree in (*trees, *bases.trees, *(t for _, t in profiles.values()))
        }
        config = self._config(root) if readable else None
        if config is not None:
            ready = {name: link.config for name, link in links.items() if link.config is not None}
            config = config.model_copy(update={"links": ready})
        return Loaded(
            config,
            _gateway(root),
            links,
            profiles,
            self._shown(root, untold, secrets, sources),
            (main, *fragments, *(tidy(self.at.here(file)) for file in bases.files)),
            self.folders,
            root,
            sources,
            frozenset(secrets.known),
            secrets.texts,
            self.with_secrets,
            secrets.found_at,
            untold,
            self.environment,
            self.found,
        )

    def _closed(self) -> None:
        """Folders beside the config that this user may not look into: what is in them would be taken for absent."""
        own = [folder / name for folder in self.folders for name in ("templates", "cities")]
        vendors = [vendor for folder in self.folders for vendor in listed(folder / "templates")]
        for folder in (self.folder / FRAGMENTS, *own, *(Path(str(vendor)) for vendor in vendors)):
            if is_closed(folder):
                remedy = "may this user look into it? chmod 750, and the group of the daemon"
                problem = Problem("unreadable-file", (), "the folder cannot be entered", remedy, file=str(folder))
                self.problems.append(problem)
                self.hidden = {*self.hidden, "unknown-template", "unknown-profile"}

    def _laid_on(self, bases: Bases, root: Map) -> Map:
        """The config on its bases."""
        self.laid = Laid(self.problems, bases.files)
        if (variable := f"{OVERRIDE}{BASE.upper()}") in self.environment.overrides:
            message, remedy = f"{variable} is set and changes nothing", "the file itself names its base"
            self.problems.append(Problem("ignored-variable", (), message, remedy, file=f"environment {variable}"))
        if bases.missing:
            self.hidden = {*self.hidden, "missing-key", "nothing-taken"}
        whole, *more = (*bases.trees, root)
        for tree in more:
            whole = self.laid.lay(whole, tree)
        return whole

    def _parts(self, root: Map, links: Mapping[str, LoadedLink]) -> Iterator[tuple[Node, Any]]:
        """Every part of the file with the model it is to fit."""
        for key, entry in (*root.entries.items(), *root.dropped):
            if key != "links":
                field_of = next((its for name, its in Config.model_fields.items() if key in (name, its.alias)), None)
                yield (entry.node, field_of.annotation) if field_of else (Map({key: entry}, entry.key), Config)
            elif isinstance(entry.node, Map):
                for name, link in (*entry.node.entries.items(), *entry.node.dropped):
                    driver = links[name].driver if name in links else None
                    yield link.node, driver.config_model if driver else None
            else:
                yield entry.node, None

    def _shown(
        self, root: Map, untold: Mapping[KeyPath, str], secrets: Secrets, sources: Mapping[str, Source]
    ) -> tuple[Problem, ...]:
        """Without what follows from a secret that was not found, and without any secret's text."""
        about = {"missing-secret", "wrong-name"}
        kept = [
            self.laid.hinted(problem, root) if self.laid.bases else problem
            for problem in self.problems
            if (problem.path not in untold or problem.code in about) and problem.code not in self.hidden
        ]
        told = [self._cut_off(replace(problem, source=_line(problem, sources)), sources) for problem in kept]
        told += self._silent_ends(told, sources)
        return tuple(without_secrets(problem, secrets.known) for problem in told)

    def _cut_off(self, problem: Problem, sources: Mapping[str, Source]) -> Problem:
        """What stands at the end of a file that may have been cut off: the rest may be valid YAML."""
        end, source = self.ends.get(problem.file), sources.get(problem.file)
        if end is None or source is None or problem.code not in _BY_A_CUT or not problem.line:
            return problem
        if not source.lines or any(map(str.strip, source.lines[problem.line :])):
            return problem
        hint = f"{end.message}: {self._asks()}"
        return replace(problem, remedy=f"{problem.remedy}; {hint}" if problem.remedy else hint)

    def _silent_ends(self, told: list[Problem], sources: Mapping[str, Source]) -> Iterator[Problem]:
        """Ends of files of which no problem speaks."""
        for name, end in self.ends.items():
            if not any(problem.file == name and end.message in problem.remedy for problem in told):
                yield replace(end, remedy=self._asks(), source=_line(end, sources))

    def _asks(self) -> str:
        return f"was it cut off? Found: {self.found}"

    def _config(self, root: Map) -> Config | None:
        links = root.entries.get("links")
        if links and not isinstance(links.node, Map):
            self._add("wrong-type", ("links",), "links should be a map of links by name", links.node)
        version = root.get("version")
        if isinstance(version, Scalar) and version.text.isdecimal() and int(version.text) > VERSION:
            remedy = f"this citygate reads version {VERSION}: update it, or take the file that went with it"
            self._add("newer-version", ("version",), f"the file is for version {version.text}", version, remedy)
            return None  # every other complaint would be about keys that we cannot know
        own = {key: entry for key, entry in root.entries.items() if key != "links" and not key.startswith(ASIDE)}
        without = Map(own, root.place, root.dropped)
        config, problems = validate(Config, without)
        self.problems += problems
        return config

    def _with_profiles(self, root: Map, profiles: dict[str, tuple[CityProfile, Map]]) -> Map:
        """Lay each broker's entry on what its city profile says of brokers."""
        brokers = root.get("brokers")
        if not isinstance(brokers, Map):
            return root
        entries = dict(brokers.entries)
        for name, entry in brokers.entries.items():
            profile, tree = self._profile(entry.node, ("brokers", name, "use"))
            profiles[name] = profile, tree
            base = tree.get("broker")
            if isinstance(base, Map) and isinstance(entry.node, Map):
                entries[name] = Entry(entry.key, overlay(base, entry.node))
        over = Entry(root.entries["brokers"].key, Map(entries, brokers.place, brokers.dropped))
        return Map({**root.entries, "brokers": over}, root.place, root.dropped)

    def _profile(self, broker: Node, path: KeyPath) -> tuple[CityProfile, Map]:
        use = broker.get("use") if isinstance(broker, Map) else None
        empty = CityProfile(), Map({}, broker.place)
        if not isinstance(use, Scalar) or (self.laid.bases and is_null(use)):
            return empty
        kind, _, name = use.text.partition("/")
        folders = (*(folder / "cities" for folder in self.folders), shipped("cities"))
        files = [folder / f"{name}.yaml" for folder in folders] if kind == "cities" and NAME.fullmatch(name) else []
        file = next((f for f in files if is_file(f)), None)  # a profile's name is no path
        if file is None:
            known = sorted({f"cities/{f.stem}" for folder in folders for f in yaml_files(folder)})
            remedy = known_or_near(use.text, known) or "put it into cities/ beside the config"
            self._add("unknown-profile", path, f"no city profile {use.text}", use, remedy)
            return empty
        tree = read_tree(file, self.problems)
        profile, problems = validate(CityProfile, tree)
        self.problems += problems
        return profile or CityProfile(), tree

    def _links(self, root: Map) -> dict[str, LoadedLink]:
        links = root.get("links")
        if not isinstance(links, Map):
            return {}
        loaded: dict[str, LoadedLink] = {}
        owners: dict[str, str] = {}
        for name, entry in links.entries.items():
            self._check_name(name, ("links", name), entry)
            loaded[name] = self._link(name, entry)
            for device in loaded[name].devices:
                if device in owners:
                    self._twice(root, name, device, owners[device])
                owners.setdefault(device, name)
        return loaded

    def _twice(self, root: Map, link: str, device: str, owner: str) -> None:
        path = ("links", link, "devices", device)
        first = find(root, ("links", owner, "devices", device)).key
        self._add("duplicate-device", path, f"link {owner} has a device {device} too, at {first}", root,
                  "give one of them another name: readings and entities are told apart by it"
                  + (f"; if it has moved: {device}: null on link {owner}" if self.laid.bases else ""))  # fmt: skip

    def _link(self, name: str, entry: Entry) -> LoadedLink:
        node, path = entry.node, ("links", name)
        if not isinstance(node, Map):
            self._add("wrong-type", path, "a link should be a map with driver and devices", node)
            return LoadedLink(name, "", None, None, (), {})
        devices = node.get("devices")
        names = tuple(devices.entries) if isinstance(devices, Map) else ()
        for device in names:
            self._check_name(device, (*path, "devices", device), devices.entries[device])  # type: ignore[union-attr]
        kind = node.get("driver")
        if not isinstance(kind, Scalar) or not kind.text:
            problem = Problem("missing-key", path, "missing key driver", "kind of link, e.g. modbus", at="key")
            self.problems.append(place_problem(problem, entry.key))
            return LoadedLink(name, "", None, None, names, {})
        driver = self.find_driver(kind.text)
        if isinstance(driver, NoDriver):
            if driver.unknown:
                self._add("unknown-driver", (*path, "driver"), driver.fault, kind,
                          known_or_near(kind.text, driver.names, "installed"))  # fmt: skip
                return LoadedLink(name, kind.text, None, None, names, {})
            return LoadedLink(name, kind.text, None, None, names, {}, driver.fault, driver.remedy)
        return self._link_of(driver, name, entry, names)

    def _link_of(self, driver: Driver[Any], name: str, entry: Entry, names: tuple[str, ...]) -> LoadedLink:
        node = entry.node
        given: dict[KeyPath, Any] = {}
        templates: dict[str, LoadedTemplate] = {}
        for device in names:
            place = ("devices", device, "template")
            found = find(node, place)
            if found.missing is None and isinstance(found.node, Scalar):
                path = ("links", name, *place)
                loaded = self.templates.find(driver, found.node, path)
                templates[device] = loaded
                given[place] = loaded.template
        config, problems = validate(driver.config_model, node, ("links", name), given, entry)
        broken = {("links", name, *place) for place, template in given.items() if template is None}
        self.problems += [problem for problem in problems if problem.path not in broken]
        sound = config or self._sound(driver, name, entry, given, problems)
        return LoadedLink(name, driver.name, driver, config, names, templates, sound=sound)

    def _sound(
        self, driver: Driver[Any], name: str, entry: Entry, given: Mapping[KeyPath, Any], problems: list[Problem]
    ) -> LinkConfig | None:
        """The link without devices that have errors and without unknown keys: what concerns it as a whole shows beside them."""
        node = entry.node
        devices = node.get("devices") if isinstance(node, Map) else None
        if not isinstance(node, Map) or not isinstance(devices, Map):
            return None
        wrong: set[str | int] = set()
        unknown: set[str | int] = set()
        for problem in problems:
            match problem.path[2:]:
                case ("devices", device, *_):
                    wrong.add(device)
                case (key,) if problem.code == "unknown-key":
                    unknown.add(key)
                case _:
                    return None
        if wrong >= devices.entries.keys():
            return None
        rest = Map({key: its for key, its in devices.entries.items() if key not in wrong}, devices.place)
        known = {key: its for key, its in node.entries.items() if key not in unknown}
        whole = Map({**known, "devices": Entry(known["devices"].key, rest)}, node.place)
        ready = {place: template for place, template in given.items() if place[1] not in wrong}
        config, more = validate(driver.config_model, whole, ("links", name), ready, entry)
        if not unknown:  # else it may be for want of what is misspelt
            self.problems += more
        return config

    def _check_name(self, name: str, path: KeyPath, entry: Entry) -> None:
        if not NAME.fullmatch(name):
            problem = Problem(
                "wrong-name",
                path,
                f"{name!r} cannot be a name",
                "letters, digits, '-', '_' and '.', at most 64, as it goes into ids and metrics",
            )
            self.problems.append(place_problem(problem, entry.key))

    def _add(self, code: str, path: KeyPath, message: str, node: Node, remedy: str = "") -> None:
        problem = Problem(code=code, path=path, message=message, remedy=remedy)
        if isinstance(node, Map) and find(node, path).missing is None:
            self.problems.append(locate(problem, node))
        else:
            self.problems.append(place_problem(problem, node.place))


_BY_A_CUT = frozenset(("wrong-type", "missing-key", "missing-value", "unknown-key"))


def _end(tree: Map) -> tuple[str, Problem] | None:
    """The end of a file that looks as if there had been more: without a line end, or with a key that has no value."""
    source = tree.place.source
    last = next((number for number in range(len(source.lines), 0, -1) if source.lines[number - 1].strip()), 0)
    if not source.parsed or not last:
        return None
    place = Place(source, last, len(source.lines[last - 1]))
    message = "the file ends here without a line end"
    if source.whole:
        key = _last_key(tree)
        if key is None or key.line != last:
            return None
        place, message = key, "the file ends with a key that has no value"
    return source.name, place_problem(Problem("cut-off", (), message, severity="warning"), place)


def _last_key(tree: Map) -> Place | None:
    """The last key of a file, when nothing stands behind it."""
    node: Node = tree
    key = tree.place
    while isinstance(node, Map | Items):
        inner = (
            [(entry.key, entry.node) for entry in node.entries.values()]
            if isinstance(node, Map)
            else [(its.place, its) for its in node.items]
        )
        if not inner:
            return None
        key, node = max(inner, key=lambda its: its[0].line)
    return key if not node.text and node.plain and not node.tag else None


def _line(problem: Problem, sources: Mapping[str, Source]) -> str:
    """The source line as it may be shown by now."""
    source = sources.get(problem.file)
    if source is None or not 0 < problem.line <= len(source.lines):
        return problem.source
    return shown_lines(source)[problem.line - 1] if not source.parsed else source.lines[problem.line - 1]


def _gateway(root: Map) -> GatewayConfig | None:
    part = root.get("gateway")
    return validate(GatewayConfig, part)[0] if isinstance(part, Map) else None


def shipped(folder: str) -> Path:
    """A folder of config/: in the wheel inside the package, in a checkout beside it."""
    package = Path(str(package_files("gateway")))
    inside = package / "share" / folder
    return inside if inside.is_dir() else package.parent / "config" / folder
