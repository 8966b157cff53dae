"""`puhui`: the commands."""

from __future__ import annotations

import sys

from puhui.core.errors import MissingExtra, PuhuiError

try:
    import typer
except ImportError as error:
    raise SystemExit(str(MissingExtra("the puhui command", "serve"))) from error

from puhui.cli.bill_command import bill
from puhui.cli.compress_command import compress
from puhui.cli.demo_command import demo
from puhui.cli.experts_command import experts_app
from puhui.cli.forget_command import forget
from puhui.cli.keys_command import keys_app
from puhui.cli.serve_command import serve

app = typer.Typer(
    help="A small expert in front of every big model: learned from its answers, proven, billed like electricity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(demo)
app.command()(compress)
app.command()(bill)
app.command()(forget)
app.add_typer(experts_app, name="experts")
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Runs one command; our own errors end it with their message and exit code 2."""
    try:
        app()
    except PuhuiError as error:
        typer.secho(f"puhui: {error}", err=True, fg="red")
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("puhui: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
