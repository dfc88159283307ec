"""The commands of `mx`, assembled; each is a function in a file of its own."""

import logging
from typing import Annotated

import typer

from modelexpress.cli.bench import bench
from modelexpress.cli.demo import demo
from modelexpress.cli.doctor import doctor
from modelexpress.cli.dwdp import dwdp
from modelexpress.cli.keys import keys
from modelexpress.cli.plan import plan
from modelexpress.cli.publish import publish
from modelexpress.cli.pull import pull
from modelexpress.cli.serve import serve
from modelexpress.cli.sources import sources
from modelexpress.cli.trtllm import trtllm

app = typer.Typer(
    name="mx",
    help="Gets model weights onto accelerators from wherever a copy already lives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _configure(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what happens.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


for command in (serve, sources, publish, pull, plan, bench, doctor, demo):
    app.command()(command)
app.add_typer(keys, name="keys")
app.add_typer(dwdp, name="dwdp")
app.add_typer(trtllm, name="trtllm")
