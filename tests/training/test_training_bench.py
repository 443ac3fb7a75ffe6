"""Benchmarks of the training step and of the exchange at the smallest size."""

import json
from pathlib import Path

import pytest
from programs import run_program

from vggrepro.bench import step
from vggrepro.cli.main import app
from vggrepro.config.parsing import override


def test_step_reports_the_keys_of_a_benchmark() -> None:
    config = override(step.small(), ["model.crop=32", "model.width=0.0625", "run.device=cpu"], Path("test"))
    found = step.run(config, ("A", "D"), (2, 4), steps=1, rounds=2)
    assert {"name", "ours", "usual", "ratio", "unit", "ceiling", "details"} <= found.keys()
    assert found["ours"] > 0
    assert found["ceiling"] == found["details"]["D batch 4"]["bare"]
    assert "ratio_to_usual_channels_last" in found["details"]["A batch 2"]


def test_comm_on_a_single_rank_reports_how_to_start_it() -> None:
    from typer.testing import CliRunner

    from vggrepro.errors import UserError

    failed = CliRunner().invoke(app, ["bench", "comm", "--set", "run.device=cpu"])
    assert isinstance(failed.exception, UserError)
    assert "torchrun" in str(failed.exception)


@pytest.mark.slow
def test_comm_counts_the_bytes_that_two_ranks_exchange() -> None:
    line = "bench comm --net A --steps 1 --rounds 1 --json --set run.device=cpu --set model.width=0.125"
    done = run_program("-m", "vggrepro", *line.split(), ranks=2)
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)["details"]
    assert details["ranks"] == 2
    assert details["ddp MB in collectives"] == pytest.approx(2 * details["bf16 MB in collectives"])
    assert details["factor MB in collectives"] < details["ddp MB in collectives"]
