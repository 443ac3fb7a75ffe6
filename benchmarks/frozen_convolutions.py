"""Tables 3-5 in small: the authors' thirteen convolutions, frozen, with new fully-connected layers.

What the paper says of testing is put to the test on photographs that the convolutions have never seen: is dense better
than the centre crop, three scales better than one, multi-crop complementary to dense?

    python benchmarks/frozen_convolutions.py --convolutions vgg16_imagenet_conv_fp16.npz --images FOLDER

FOLDER has train/<class>/* and val/<class>/*. Training views are drawn as in Section 3.1, with S jittered; their last
pooling maps are computed once. Geometry is reduced (crop 64, S in [73;146], Q 73, 109, 146), for a CPU's sake.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from vggrepro.config.settings import ColourShift, Config, Data, Evaluation, Model, Run
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Loader, make_loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import Views
from vggrepro.evaluation.measure import Scored
from vggrepro.evaluation.significance import paired_right
from vggrepro.models.caffe import state_of
from vggrepro.models.init import init_weights
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING
from vggrepro.paper import value
from vggrepro.pipeline.evaluate import evaluate_nets
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import environment
from vggrepro.storage.status import final_file

VIEWS = 4  # of each training image
PASSES = 20  # over all of them
BATCH = 64
RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convolutions", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    index = scan_folder(arguments.images)
    config = Config(
        model=Model(net="D", classes=len(index.classes), crop=64),
        data=Data(root=str(arguments.images), S=(73, 146), colour_shift=ColourShift(mode="off")),
        evaluation=Evaluation(batch=64),
        run=Run(root=arguments.runs, experiment="frozen-convolutions", name="D-authors-convolutions", device="cpu"),
    )
    final = final_file(config.directory)
    if not final.exists():
        net = VGG(architecture_of(config)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        init_weights(net, "paper", seed=0)
        with np.load(arguments.convolutions, allow_pickle=False) as content:
            names = {key.partition(".")[0] for key in content}
            layers = {name: (content[f"{name}.weight"], content[f"{name}.bias"]) for name in names}
        net.load_state_dict(state_of(layers, net.architecture), strict=False)
        split = index.split("train")
        sampler = TrainingSampler(split.size, config.data, config.model.crop, config.run.seed)
        loader = make_loader(config.data, torch.device("cpu"))
        n = VIEWS * len(split)
        views = [sampler.views(first, min(BATCH, n - first)) for first in range(0, n, BATCH)]
        train_head(net, loader, split, views)
        provenance = {"data": index.fingerprint, "classes": list(index.classes), "versions": environment()}
        weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        stored = checkpoint.Checkpoint(config.model_dump(mode="json"), 0, weights, PREPROCESSING["paper"], provenance)
        checkpoint.save(stored, final)
        RunDirectory(config.directory).write_text("config.yaml", config.to_yaml())
    report(config)


def train_head(net: VGG, loader: Loader, split: Split, views: Sequence[Views]) -> None:
    """Trains fc6-fc8 on the cached last pooling maps."""
    torch.manual_seed(0)
    maps, labels = [], []
    with torch.inference_mode():
        for batch in loader.batches(split, views):
            maps.append(net.features(batch.images).flatten(1))
            labels.append(batch.labels)
    features, truth = torch.cat(maps), torch.cat(labels)
    print(f"cached {len(features)} last pooling maps of {len(split)} images", flush=True)
    net.classifier.train()
    optimiser = torch.optim.SGD(
        net.classifier.parameters(), lr=RATE, momentum=value("momentum"), weight_decay=value("weight_decay")
    )
    steps = PASSES * len(features) // BATCH
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [steps // 2, 3 * steps // 4])
    generator = torch.Generator().manual_seed(0)
    for number in range(PASSES):
        total = 0.0
        for rows in torch.randperm(len(features), generator=generator).split(BATCH):
            loss = F.cross_entropy(net.classifier(features[rows].clone()), truth[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"pass {number + 1}: loss {total / len(features):.4f}", flush=True)
    net.eval()


def report(config: Config) -> None:
    """Evaluates by every method, and prints the table and the paired tests; what is stored is not computed again."""
    multi, single = config.multi_Q, (config.multi_Q[1],)
    protocols = [("centre", single), ("dense", single), ("dense", multi), ("multicrop", single), ("multicrop", multi)]
    protocols += [("both", single), ("both", multi)]
    results: dict[str, Scored] = {}
    for method, Q in protocols:
        found = evaluate_nets([config.directory], [method], Q)
        assert found is not None
        results[f"{method} at Q={', '.join(map(str, Q))}"] = found[0].scored(method, Q)
    rows = []
    for name, scored in results.items():
        top1, top5 = scored.measured.top1, scored.measured.top5
        rows.append(
            {"protocol": name, "top1": top1.percent, "interval": top1.interval, "top5": top5.percent, "n": top1.n}
        )
        low, high = top1.interval
        print(f"| {name} | {top1.percent:.2f} | {low:.1f} - {high:.1f} | {top5.percent:.2f} | {top1.n} |")
    (centre, dense, dense3, crops, crops3, both, both3) = results
    pairs = [(other, centre) for other in (dense, dense3, crops, crops3, both, both3)]
    pairs += [(dense3, dense), (crops3, crops), (both3, both)]
    pairs += [(crops, dense), (crops3, dense3), (both, dense), (both3, dense3), (both, crops), (both3, crops3)]
    tests = []
    for first, second in pairs:
        test = paired_right(results[first].ranks.right1, results[second].ranks.right1)
        tests.append(
            {"first": first, "second": second, "difference": test.difference, "interval": test.interval}
            | {"p_value": test.p_value, "only_first": test.only_first_right, "only_second": test.only_second_right}
        )
        low, high = test.interval
        print(
            f"| {first} | {second} | {test.difference:+.1f} | {low:+.1f} to {high:+.1f} "
            f"| {test.only_first_right} : {test.only_second_right} | {test.p_value:.2g} |"
        )
    print(json.dumps({"rows": rows, "paired": tests, "versions": environment()}, indent=1))


if __name__ == "__main__":
    main()
