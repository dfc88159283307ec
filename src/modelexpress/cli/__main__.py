"""`python -m modelexpress.cli` is `mx`."""

from modelexpress.cli import main

main()
