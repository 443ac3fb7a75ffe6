"""The `vggrepro` command and its verbs, in the order of `vggrepro --help`."""

import typer

from vggrepro.cli import bench, data, evaluate, nets, preflight, publish, report, show, train, transfer
from vggrepro.errors import run_app

app = typer.Typer(
    name="vggrepro",
    help="Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv 1409.1556), reproduced.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(no_args_is_help=True, help="Import and export weight files of other programs.")
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(no_args_is_help=True, help="Measure our code beside the usual way, interleaved in one run.")
app.add_typer(bench_app, name="bench")

for verb in (
    nets.summary,
    data.index,
    data.repack,
    data.boxes,
    train.train,
    evaluate.evaluate,
    evaluate.crosscheck,
    evaluate.localise,
    transfer.features,
    transfer.transfer,
    evaluate.verify_paper,
    train.reproduce,
    report.tables,
    report.compare,
    show.show,
    publish.publish,
    preflight.plan,
    preflight.doctor,
):
    app.command()(verb)
weights_app.command(name="import")(nets.import_weights)
weights_app.command(name="export")(nets.export_weights)
for measure in (bench.dense, bench.features, bench.loader, bench.step, bench.profile, bench.comm):
    bench_app.command()(measure)


def main() -> None:
    """Runs the console script."""
    run_app("vggrepro", app)
