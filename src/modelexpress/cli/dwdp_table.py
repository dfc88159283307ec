"""What `mx dwdp plan` prints: a table of the ranks, and bars of memory and time."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modelexpress.cli.printable import printable
from modelexpress.dwdp.foresee import TOKENS, Foresight

_WIDTH = 30
_MOST = 2.0
"""Computing over fetching at which a bar is full."""


def rank_table(foreseen: Foresight) -> Table:
    """Return what each rank holds, needs and fetches."""
    count = len(foreseen.shape.layers)
    config = foreseen.config
    title = (
        f"{count} layers of {foreseen.shape.layers[0].num_experts} experts ({foreseen.shape.origin}) over "
        f"{config.dwdp_size} ranks: num_experts_per_worker={config.num_experts_per_worker}, "
        f"num_prefetch_experts={config.num_prefetch_experts}"
    )
    divisor, unit = (1e9, "GB") if foreseen.everything >= 1e9 else (1e6, "MB")
    table = Table(
        title=Text(printable(title)), title_justify="left", caption=f"memory in {unit}", caption_justify="left"
    )
    for heading in ("rank", "stores", "fetches (owner: experts)", "own", "slots", "both", "a layer", "addresses"):
        numbers = heading not in ("stores", "fetches (owner: experts)")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=numbers)
    for needs in foreseen.ranks:
        sizes = (needs.own + needs.small, needs.slots, needs.memory, max(needs.remote), needs.addresses)
        fetches = ", ".join(f"{run.owner}:\N{NO-BREAK SPACE}{run.start}–{run.stop - 1}" for run in needs.lacked)
        held = f"{needs.held.start}–{needs.held.stop - 1}"
        table.add_row(str(needs.rank), held, fetches, *(f"{size / divisor:.2f}" for size in sizes))
    return table


def bars(foreseen: Foresight) -> Group:
    """Return the chart for a terminal: memory of a rank, and computing against fetching."""
    most = max(foreseen.ranks, key=lambda needs: needs.memory)
    whole = max(foreseen.everything, most.memory) or 1
    own, slots = (round(_WIDTH * part / whole) for part in (most.own + most.small, most.slots))
    lines = [
        Text("\nmemory for experts, of the rank that needs most"),
        _line("all of them", Text("█" * round(_WIDTH * foreseen.everything / whole), "dim"), _gb(foreseen.everything)),
        _line(
            "in this group",
            Text.assemble(("█" * own, "blue"), ("▒" * slots, "yellow")),
            f"{_gb(most.memory)}, of it {_gb(most.slots)} slots",
        ),
        Text(
            f"\n{_gb(foreseen.remote)} a layer at {foreseen.speed.bandwidth / 1e9:g} GB/s take "
            f"{foreseen.fetch_seconds * 1e3:.2f} ms: hidden where computing\n"
            "the experts of one layer and the attention of the next takes as long"
        ),
    ]
    if foreseen.hidden_from is None:
        lines.append(Text("how long computing takes is not known: give --measured TOKENS:MILLISECONDS"))
    else:
        lines.append(Text(f"that is from {foreseen.hidden_from:,} tokens of a rank's forward on, {_how(foreseen)}"))
        lines += [_time_line(foreseen, tokens) for tokens in TOKENS]
    return Group(*lines)


def _time_line(foreseen: Foresight, tokens: int) -> Text:
    ratio = foreseen.ratio(tokens) or 0.0
    bar = Text("█" * round(_WIDTH * min(ratio, _MOST) / _MOST), "green" if ratio >= 1 else "red")
    return _line(f"{tokens:,} tokens", bar, f"{ratio:.2f} × fetching, {'hidden' if ratio >= 1 else 'not hidden'}")


def _how(foreseen: Foresight) -> str:
    speed = foreseen.speed
    if speed.measured is not None:
        return f"as {speed.measured[0]:,} tokens took {speed.measured[1] * 1e3:g} ms"
    rates = f"at {speed.flops / 1e12:g} TFLOP/s\nand {speed.memory_bandwidth / 1e12:g} TB/s of memory"
    if not foreseen.attention_counted:
        return f"{rates}; attention not counted, as its shapes are not known:\nwith it fewer tokens do"
    return rates if speed.prompt else f"{rates}; scores of attention not counted: give --prompt"


def _line(name: str, bar: Text, said: str) -> Text:
    padding = " " * (_WIDTH - bar.cell_len)
    return Text.assemble(f"{name:>15} ", bar, padding, f" {said}")


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
