"""The synthetic test's curves as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recsys_llm.errors import ConfigError
from recsys_llm.files import replaced_file


def check_plot(file: Path) -> None:
    """Check, before minutes of training, that a picture can be drawn.

    Raises
    ------
    ConfigError
        matplotlib is not installed, or ``file`` is no PNG.
    """
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--plot: expected a file that ends in .png, found {file.name!r}")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot draws with matplotlib; pip install 'recsys-llm[bench]'")


def plot_oracle(content: dict[str, Any], file: Path) -> None:
    """Write a PNG of a report of ``bench oracle``, a row for each seed.

    Left: NLL_oracle along each training. Right: where each recipe ends, against the temperature sweep; below that line
    is a gain.

    Raises
    ------
    ConfigError
        As :func:`check_plot`.
    """
    check_plot(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = content["runs"]
    figure = Figure(figsize=(13, 4.5 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (run, (along, ends)) in enumerate(zip(runs, figure.subplots(len(runs), 2, squeeze=False), strict=True)):
        for place, (name, curve) in enumerate(run["curves"].items()):
            colour = f"C{place}"
            along.plot([at["step"] for at in curve], [at["nll_oracle"] for at in curve], color=colour, label=name)
            ends.plot(curve[-1]["entropy"], curve[-1]["nll_oracle"], "o", color=colour)
        sweep = sorted(run["sweep"], key=lambda at: at["entropy"])
        ends.plot(
            [at["entropy"] for at in sweep], [at["nll_oracle"] for at in sweep], "k.-", label="MLE, by temperature"
        )
        along.set(title=f"seed {number}", xlabel="generator steps", ylabel="NLL_oracle, nats per item")
        ends.set(title="at the same entropy", xlabel="H(G), nats per item", ylabel="NLL_oracle, nats per item")
        ends.legend(fontsize="small")
    handles, names = along.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    with replaced_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
