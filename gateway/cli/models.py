"""Verbs of the city data models: list, show, search, new, check, refresh, contexts; and the quantities and units there are."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.cli.editor import Editor
from gateway.cli.terminal import complain, say, say_json, table
from gateway.cli.verbs import Verbs
from gateway.config.loader import config_files, shipped
from gateway.http.outcome import FINE, PROBLEM, UnknownName
from gateway.models.catalogue import AttributeSpec, Catalogue, EntityType
from gateway.sdk.errors import CitygateError, Problem
from gateway.sdk.quantities import quantities, units

ACTIONS = ("list", "show", "search", "new", "check", "refresh", "contexts", "quantities", "units")


def add_verbs(verbs: Verbs) -> None:
    """models."""
    verb = verbs.add(
        "models",
        models,
        help="the city data models: list, show one, search, make and check an extension, write the contexts",
        about="The types an entity can have, offline: the published ones, and those in models/ beside the config. `show` has "
        "attributes, units and bounds, and a sample mapping; `search` looks in names and descriptions. `new` makes an "
        "extension model of a short brief (schema, context, examples, specification, changelog); `check` verifies it; "
        "`refresh` takes newer published schemas from a folder; `contexts` writes what a city has to serve for a broker that "
        "cannot fetch the published contexts (contexts: of the broker). `quantities` and `units` are what a template's points can "
        "measure, and in which units.",
        examples=(
            "citygate models",
            "citygate models show NoiseLevelObserved",
            "citygate models search soil moisture",
            "citygate models new bench.yaml --into ./models",
            "citygate models check --into ./models",
            "citygate models refresh ./schemas --into ./models",
            "citygate models contexts /var/www/contexts",
            "citygate models quantities soil",
            "citygate models units pressure",
        ),
    )
    verb.add_argument("action", nargs="?", choices=ACTIONS, default="list")
    verb.add_argument("names", nargs="*", metavar="WORD", help="type, words to search, file of the brief, or a folder")
    verb.add_argument(
        "--into", metavar="DIR", type=Path, help="folder of own models (default: models/ beside the config)"
    )


def models(given: argparse.Namespace) -> int:
    """`citygate models list|show|search|new|check|refresh|contexts`."""
    folder = given.into or config_files(given.config)[0].parent / "models"
    run = {
        "list": _list,
        "show": _show,
        "search": _search,
        "new": _new,
        "check": _check,
        "refresh": _refresh,
        "contexts": _contexts,
        "quantities": _quantities,
        "units": _units,
    }
    return run[given.action](given, folder)


def _known(folder: Path) -> Catalogue:
    from gateway.models.extension import extended

    known, problems = extended(folder)
    _complain(problems)
    return known


def _complain(problems: Any) -> None:
    for problem in problems:
        complain(f"{problem.file}: {problem.message}" + (f"\n    → {problem.remedy}" if problem.remedy else ""))


def _list(given: argparse.Namespace, folder: Path) -> int:
    known = _known(folder)
    rows = [_row(name, model) for name in sorted(known.names()) if (model := known.type(name)) is not None]
    if given.json:
        say_json(rows)
        return FINE
    for line in table([(row["type"], row["version"], row["subject"], ", ".join(row["mandatory"])) for row in rows]):
        say(line)
    return FINE


def _row(name: str, model: EntityType) -> dict[str, Any]:
    return {
        "type": name,
        "subject": model.subject,
        "version": model.version,
        "licence": model.licence,
        "origin": model.origin,
        "context": model.context,
        "mandatory": sorted(model.mandatory),
    }


def _show(given: argparse.Namespace, folder: Path) -> int:
    known = _known(folder)
    if not given.names:
        raise UnknownName("show which type? `citygate models` lists them")
    shown = []
    for name in given.names:
        model = known.type(name)
        if model is None:
            near = known.near(name)
            raise UnknownName(
                f"no type {name}" + (f"; did you mean {near}?" if near else "; citygate models search WORD")
            )
        shown.append((name, model))
    if given.json:
        say_json([{**_row(name, model), "attributes": _attributes(known, model)} for name, model in shown])
        return FINE
    for name, model in shown:
        _page(known, name, model)
    return FINE


def _attributes(known: Catalogue, model: EntityType) -> dict[str, Any]:
    return {
        name: {
            "kind": spec.kind,
            "json": list(spec.json),
            "unit": spec.unit,
            "allows": _bounds(spec),
            "members": sorted(spec.members),
            "iri": known.iri(model.context, name),
            "mandatory": name in model.mandatory,
        }
        for name, spec in model.attributes.items()
    }


def _bounds(spec: AttributeSpec) -> str:
    inner = spec.items if spec.items is not None and spec.items.enum else spec
    if inner.enum:
        return " | ".join(map(str, inner.enum))
    if spec.minimum is None and spec.maximum is None:
        return ""
    low, high = ("" if bound is None else f"{bound:g}" for bound in (spec.minimum, spec.maximum))
    return f"{low}..{high}"


def _page(known: Catalogue, name: str, model: EntityType) -> None:
    say(f"{name} {model.version}: {model.subject}, {model.licence}, {model.origin}")
    say(f"context {model.context}")
    say("")
    ordered = sorted(model.attributes.items(), key=lambda pair: (pair[0] not in model.mandatory, pair[0].lower()))
    rows = [
        (
            attribute,
            "mandatory" if attribute in model.mandatory else "",
            spec.kind if spec.kind != "property" else "/".join(spec.json),
            spec.unit,
            _bounds(spec) or ", ".join(f".{member}" for member in spec.members),
        )
        for attribute, spec in ordered
    ]
    for line in table(rows, indent="  "):
        say(line)
    sample = shipped("mappings") / f"{name}.yaml"
    if sample.is_file():
        say("")
        say("sample mapping:")
        for line in sample.read_text(encoding="utf-8").splitlines():
            say(f"  {line}")
    say("")


def _search(given: argparse.Namespace, folder: Path) -> int:
    from gateway.models.search import search

    if not given.names:
        raise UnknownName("search for which words?")
    found = search(_known(folder), given.names)
    if given.json:
        say_json([{"type": hit.type, "subject": hit.subject, "attributes": list(hit.attributes)} for hit in found])
        return FINE if found else PROBLEM
    for line in table([(hit.type, hit.subject, ", ".join(hit.attributes)) for hit in found]):
        say(line)
    if not found:
        complain(
            f"nothing about {' '.join(given.names)}; DeviceMeasurement takes any value, `models new` makes a model"
        )
    return FINE if found else PROBLEM


def _new(given: argparse.Namespace, folder: Path) -> int:
    from gateway.models.extension import read_brief, write_model

    if len(given.names) != 1:
        sample = shipped("models") / "BenchObserved.yaml"
        raise UnknownName(f"new takes one file, the brief; a sample is {sample}")
    brief_file = Path(given.names[0])
    try:
        brief = read_brief(brief_file)
        files = write_model(brief, folder, brief_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CitygateError(f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        return _refused(str(error), as_json=given.json)
    Editor(config_files(given.config)[0].parent).refresh()
    if given.json:
        say_json({"type": brief.type, "files": [str(file) for file in files]})
        return FINE
    for file in files:
        say(str(file))
    say(
        f"\n{brief.type} can be used: entity: {{type: {brief.type}, attributes: …}}. Publish the context at {brief.context},"
    )
    say("because brokers fetch it from there.")
    return FINE


def _refused(text: str, *, as_json: bool) -> int:
    if as_json:
        say_json({"error": text, "problems": text.splitlines()})
    else:
        for line in text.splitlines():
            complain(line)
    return PROBLEM


def _check(given: argparse.Namespace, folder: Path) -> int:
    from gateway.models.extension import check_models, extended

    problems: list[Problem] = check_models(folder)
    known, _ = extended(folder)
    own = [name for name in known.names() if known.type(name).origin == str(folder)]  # type: ignore[union-attr]
    if given.json:
        rows = [{"file": p.file, "message": p.message, "remedy": p.remedy} for p in problems]
        say_json({"ok": not problems, "models": own, "problems": rows})
    else:
        _complain(problems)
        say(f"{len(own)} models in {folder}: {'fine' if not problems else 'see above'}")
    return FINE if not problems else PROBLEM


def _refresh(given: argparse.Namespace, folder: Path) -> int:
    from gateway.models.refresh import index_folder

    if len(given.names) != 1 or not Path(given.names[0]).is_dir():
        raise UnknownName("refresh takes the folder of the schemas: dataModel.SUBJECT/TYPE/schema.json")
    try:
        index = index_folder(Path(given.names[0]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CitygateError(f"{given.names[0]}: not a folder of schemas: {error}") from None
    if not index["types"]:
        raise CitygateError(f"{given.names[0]}: no dataModel.SUBJECT/TYPE/schema.json in it")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "index.json"
    target.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    Editor(config_files(given.config)[0].parent).refresh()
    if given.json:
        say_json({"file": str(target), "types": sorted(index["types"])})
    else:
        say(f"{len(index['types'])} types of {given.names[0]} now come before the shipped ones ({target})")
    return FINE


def _contexts(given: argparse.Namespace, folder: Path) -> int:
    if len(given.names) != 1:
        raise UnknownName("contexts takes the folder to write to, from which the city serves them")
    written = []
    try:
        for subject, terms in sorted(_known(folder).contexts().items()):
            file = Path(given.names[0]) / subject / "context.jsonld"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"@context": terms}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            written.append(str(file))
    except OSError as error:
        raise CitygateError(f"{error.filename}: {error.strerror}") from None
    if given.json:
        say_json({"files": written})
    else:
        say(
            f"{len(written)} contexts in {given.names[0]}: serve them as application/ld+json, and put contexts: to that address"
        )
    return FINE


def _quantities(given: argparse.Namespace, _: Path) -> int:
    found = [q for q in quantities().values() if _about(f"{q.name} {q.meaning} {q.dimension}", given.names)]
    rows: list[dict[str, Any]] = [
        {
            "quantity": its.name,
            "kind": its.kind,
            "unit": its.unit,
            "dimension": its.dimension,
            "range": its.range,
            "personal": its.personal,
            "meaning": its.meaning,
        }
        for its in found
    ]
    shown = [(its.name, its.unit or its.kind, _span(its.range), its.meaning) for its in found]
    return _say_rows(given, rows, shown)


def _units(given: argparse.Namespace, _: Path) -> int:
    rows = [
        {"code": its.code, "symbol": its.symbol, "name": its.name, "dimension": its.dimension}
        for its in units().values()
        if _about(f"{its.code} {its.symbol} {its.name} {its.dimension}", given.names)
    ]
    return _say_rows(given, rows, [(row["code"], row["symbol"], row["name"], row["dimension"]) for row in rows])


def _about(text: str, words: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _span(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:g}..{bounds[1]:g}"


def _say_rows(given: argparse.Namespace, rows: list[dict[str, Any]], shown: Sequence[Sequence[str]]) -> int:
    if given.json:
        say_json(rows)
    else:
        for line in table(shown):
            say(line)
    return FINE if rows else PROBLEM
