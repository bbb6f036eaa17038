"""``tailrace eval run`` and ``resume``: from a suite, or a run that is not through, to a report."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tailrace
from tailrace.cli import server
from tailrace.cli.batch import job
from tailrace.cli.evaluate.options import Budget, LocalModel, RunName, Runs
from tailrace.cli.options import Home, Json
from tailrace.cli.output import say, warn
from tailrace.cli.running import INTERRUPTED
from tailrace.errors import TailraceError
from tailrace.evaluation.formats import count

if TYPE_CHECKING:
    from tailrace.evaluation.folder import Folder
    from tailrace.evaluation.loading import Loaded
    from tailrace.evaluation.runner import Run

#: What a command ends with, by how its run stands then.
CODES = {"completed": 0, "stopped": 3, "failed": 1}

SuiteFile = Annotated[
    Path, typer.Argument(metavar="SUITE", help="The suite: a YAML file (docs/evaluation.md).")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="M", help="Only this model, of the suite or another one; can be repeated."
    ),
]


def run(
    suite: SuiteFile,
    models: Models = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Samples of each item.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N items.")
    ] = None,
    budget: Budget = None,
    max_concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests under way at once.")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag beside the suite's; repeatable.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask anew, whatever earlier runs and the cache have.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would come to; nothing is asked.")
    ] = False,
    runs: Runs = Path("runs"),
    local_model: LocalModel = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Ask every model of a suite for every item, score the answers, and write a report.

    Ctrl-C detaches: `tailrace eval resume RUN` goes on. Requests that an earlier run has answers to are not sent again.
    """
    from tailrace.evaluation import loading

    overrides = loading.Overrides(
        models=models or (),
        samples=samples,
        limit=limit,
        budget=budget,
        max_concurrency=max_concurrency,
        tags=tags or (),
    )
    loaded = loading.load(suite, overrides)
    configured = _configured(home, local_model)
    if dry_run:
        from tailrace.cli.evaluate.dryrun import dry_run as told

        raise typer.Exit(told(loaded, runs, home, fresh=fresh, local_model=local_model, as_json=as_json))
    with job.on_disk(runs / "."):
        folder = begin(loaded, runs, server.identity(home), fresh=fresh)
        try:
            code = _work(folder, runs, home, None, configured, local_model, as_json)
        except TailraceError:
            if not folder.manifest.has_sent:
                shutil.rmtree(folder.path, ignore_errors=True)  # the same command begins it again
            raise
    raise typer.Exit(code)


def resume(
    run: RunName,
    budget: Budget = None,
    runs: Runs = Path("runs"),
    local_model: LocalModel = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Go on with a run: ask for what has no answer, and for what failed. What is answered is neither sent nor paid for
    again."""
    from tailrace.evaluation import folder as folders

    folder = folders.find(runs, run)
    configured = _configured(home, local_model)
    there, here = folder.manifest.server, server.identity(home)
    if there != here:
        raise TailraceError(f"{folder.manifest.id} was asked on {there}, and this is {here}: go on there")
    with job.on_disk(folder.path / "."):
        code = _work(folder, runs, home, budget, configured, local_model, as_json)
    raise typer.Exit(code)


def _configured(home: Path | None, local_model: bool) -> bool:
    configured = server.is_configured(home)
    if local_model and configured:
        raise typer.BadParameter(
            "a server is configured, which has its own models", param_hint="--local-model"
        )
    return configured


def begin(loaded: Loaded, runs: Path, server: str, *, fresh: bool) -> Folder:
    """A new run's folder, with all that it needs to go on. Nothing stays of one whose suite can't work."""
    from tailrace.evaluation import dataset, folder, loading
    from tailrace.evaluation.runner import Run

    suite = loaded.suite
    items = dataset.read_items(suite.dataset, loaded.path.parent)
    made = folder.Folder.create(
        runs,
        folder.Manifest(
            id=folder.new_id(suite.name, runs),
            suite=loading.dump(suite),
            source=str(loaded.path.resolve()),
            server=server,
            dataset=str(suite.dataset.path),
            fingerprint=dataset.fingerprint(items),
            items=len(items),
            created=time.time(),
            tailrace=tailrace.__version__,
            tags=[*suite.tags],
            fresh=fresh,
        ),
        loaded.text,
    )
    try:
        dataset.write_items(made.path / folder.ITEMS, items)
        with Run(made):
            made.save()
        return made
    except BaseException:
        shutil.rmtree(made.path, ignore_errors=True)
        raise


def _work(
    folder: Folder,
    runs: Path,
    home: Path | None,
    budget: float | None,
    configured: bool,
    local_model: bool,
    as_json: bool,
) -> int:
    from tailrace.evaluation.runner import Run

    options = _options(runs, home, budget, local_model=local_model)
    with folder.locked(), Run(folder) as run:
        if not as_json:
            _announce(run)
        if not folder.manifest.fresh and not folder.manifest.has_sent:
            _reuse(run, runs, quiet=as_json)
        ended: list[str] = []

        async def use(client: tailrace.Client) -> int:
            from tailrace.cli.evaluate.live import live

            with live(quiet=as_json) as observer:
                status = await run.ask(client, observer, budget=budget)
            ended.append(status)
            return CODES[status]

        try:
            if configured:
                code = server.with_server(home, use)
            elif not any(work.pending() for work in run.works) and not run.grader.judges:
                run.conclude()  # nobody waits for a whole stack that has nothing to do
                ended.append(folder.manifest.status)
                code = CODES[folder.manifest.status]
            else:
                code = server.embedded(home, local_model=local_model, quiet=as_json, use=use)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except TailraceError as error:
            if not folder.manifest.has_sent:
                raise
            again = f"tailrace eval resume {folder.manifest.id}{options}"
            raise TailraceError(f"{str(error).rstrip('.')}. When that is mended: {again}") from error
        if ended:
            _tell(folder, as_json=as_json)
            failed = _failed(folder)
            return 3 if code == 0 and failed else code
        if code in (0, INTERRUPTED):  # a stack that was told to end otherwise has the code 0
            goes_on = "its requests go on" if configured else "and all of its stack with it"
            warn(f"detached, {goes_on}: tailrace eval resume {folder.manifest.id}{options}")
            return INTERRUPTED
        return code


def _announce(run: Run) -> None:
    manifest, suite = run.folder.manifest, run.suite
    arms, samples = len(run.works), suite.samples
    total = arms * samples * len(run.items)
    several = len(suite.prompts) > 1
    arm = "model" if arms == 1 else "models and prompts" if several else "models"
    what = f"{count(len(run.items), 'item')} × {arms} {arm} × {count(samples, 'sample')}"
    say(f"run {manifest.id}: {what} = {count(total, 'request')}")


def _reuse(run: Run, runs: Path, *, quiet: bool) -> None:
    for other, taken in run.reuse(runs).items():
        if not quiet:
            say(f"{count(taken, 'answer')} to the same requests taken from {other}; --fresh asks again")


def _tell(folder: Folder, *, as_json: bool) -> None:
    from tailrace.cli.evaluate.look import as_value, tell

    if as_json:
        print(json.dumps(as_value(folder)))
    else:
        tell(folder)


def _failed(folder: Folder) -> int:
    """Samples without an answer."""
    from tailrace.evaluation.outputs import read_summary

    summary = read_summary(folder.path)
    arms: list[Any] = [] if summary is None else summary.figures.arms
    return sum(arm.outcomes.get("error", 0) + arm.outcomes.get("missing", 0) for arm in arms)


def _options(runs: Path, home: Path | None, budget: float | None, *, local_model: bool) -> str:
    """Those that the command was given, for the one that goes on."""
    given = [f"--runs {shlex.quote(str(runs))}"] if runs != Path("runs") else []
    given += [f"--home {shlex.quote(str(home))}"] if home else []
    given += [f"--budget {budget:g}"] if budget is not None else []
    given += ["--local-model"] if local_model else []
    return "".join(f" {option}" for option in given)
