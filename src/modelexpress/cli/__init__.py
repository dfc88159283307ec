"""The command `mx`."""

import sys


def main() -> None:
    """Run `mx`; errors of ours end it with one line on standard error and status 1."""
    try:
        from modelexpress.cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(f"mx needs the package {error.name}: pip install 'modelexpress[cli]'")
    from modelexpress.cli.printable import printable
    from modelexpress.errors import ModelExpressError

    try:
        app()
    except ModelExpressError as error:
        sys.exit(f"mx: {printable(str(error))}")
