"""Final nets as MLflow models, for `mlflow.pyfunc.load_model` and `mlflow models serve`.

The folder of a model contains the run's `final.pt`, a copy of this package, which loads it, and the requirements. A
store on the same file system gets a hard link instead of a copy of the net.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggrepro.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NET = "final.pt"
"""Checkpoint in a model's folder."""
LOADER = "vggrepro.pipeline.served"
CHAMPION = "champion"
"""Alias of the registered version with the lowest top-1 error."""
HEADLINES = ("dense_multi_Q_top1_error", "dense_single_Q_top1_error")
"""Errors by which versions are compared, in order of preference."""
_TAG = "vggrepro"
_DISTRIBUTIONS = ("mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch")


@dataclass(frozen=True)
class ModelDescription:
    """Description of a net to log."""

    final: Path
    """Checkpoint of the net, which may not exist yet."""
    name: str
    """Name on MLflow's Models page."""
    params: Mapping[str, str]
    data: str
    """Fingerprint of the images for training and testing."""
    register: str | None = None
    """Registered model of which the net becomes a version; None to log without registering."""


def create_model(client: MlflowClient, experiment_id: str, run_id: str, described: ModelDescription) -> str:
    """Creates a logged model as the output of a run, and returns its ID. MLflow's exceptions propagate."""
    from mlflow.entities import LoggedModelOutput

    name, params = described.name, dict(described.params)
    model = client.create_logged_model(experiment_id, name, run_id, params=params, model_type="image classifier")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def upload_model(client: MlflowClient, model_id: str, described: ModelDescription) -> None:
    """Uploads the net of a logged model unless that is done. Raises OSError; MLflow's exceptions propagate."""
    from mlflow.entities import LoggedModelStatus

    model = client.get_logged_model(model_id)
    if model.status == LoggedModelStatus.READY:
        return
    with tempfile.TemporaryDirectory(dir=described.final.parent, prefix=".model-") as scratch:
        folder = Path(scratch) / "model"
        write_model(folder, described.final, model.source_run_id, model_id)
        if target := _local_folder(model.artifact_location):
            shutil.copytree(folder, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        else:
            client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def write_model(folder: Path, final: Path, run_id: str | None = None, model_id: str | None = None) -> None:
    """Writes the folder of a model, with a hard link to the checkpoint if possible. Raises OSError and UserError."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    from vggrepro.storage import checkpoint

    net = checkpoint.load(final)
    stage, classes = net.stage, net.provenance["classes"]
    Q, flip, crop = list(stage.multi_Q), stage.evaluation.flip, stage.model.crop
    images = TensorSpec(np.dtype("O"), (-1,))  # MLflow's only type for images of different sizes
    probabilities = TensorSpec(np.dtype(np.float32), (-1, stage.model.classes))
    params = ParamSchema([ParamSpec("Q", DataType.long, Q, (-1,)), ParamSpec("flip", DataType.boolean, flip)])
    pyfunc.save_model(
        folder,
        loader_module=LOADER,
        code_paths=[str(Path(__file__).parents[1])],
        mlflow_model=Model(
            run_id=run_id,
            model_id=model_id,
            signature=ModelSignature(Schema([images]), Schema([probabilities]), params),
            metadata={"classes": classes, "Q": Q, "flip": flip, "crop": crop},
        ),
        input_example=np.array([_example(crop)], dtype=object),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _DISTRIBUTIONS],
    )
    _link_or_copy(str(final), str(folder / NET))


def register(
    client: MlflowClient, model_id: str, run_id: str, described: ModelDescription, errors: Mapping[str, float]
) -> None:
    """Registers a logged net as a version with its errors; the best version on the same images is the champion."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    name = described.register
    assert name, described
    try:
        tags = {_TAG: "net"}
        client.create_registered_model(name, tags, "Nets of arXiv 1409.1556, trained and logged by vggrepro.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_registered_model(name).tags.get(_TAG) != tags[_TAG]:
            raise UserError(f"registered model {name} is not from vggrepro; set another tracking.register") from None
    versions: list[ModelVersion] = list(client.search_model_versions(f"name = '{name}'"))
    version = next((each for each in versions if each.tags.get(f"{_TAG}.model") == model_id), None)
    tags = {f"{_TAG}.model": model_id, f"{_TAG}.data": described.data, "stage": described.name}
    tags |= {key: str(errors[key]) for key in HEADLINES if key in errors}
    if version is None:
        model = client.get_logged_model(model_id)
        version = client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model_id)
        registered = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        registered.append({"name": name, "version": version.version})
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(registered)})
        versions.append(version)
    else:
        for key, text in tags.items():
            if version.tags.get(key) != text:
                client.set_model_version_tag(name, version.version, key, text)
    version.tags.update(tags)
    comparable = [each for each in versions if each.tags.get(f"{_TAG}.data") == described.data]
    best = _best(comparable)
    alias = client.get_registered_model(name).aliases.get(CHAMPION)
    champion = next((each for each in versions if str(each.version) == str(alias)), None)
    if best and (champion is None or (champion in comparable and champion is not best)):
        client.set_registered_model_alias(name, CHAMPION, best.version)


def _best(versions: list[ModelVersion]) -> ModelVersion | None:
    """Selects the oldest version with the lowest error in the first of HEADLINES that all tested versions have."""
    tested = [each for each in versions if any(key in each.tags for key in HEADLINES)]
    for key in HEADLINES:
        if tested and all(key in each.tags for each in tested):
            return min(tested, key=lambda each: (float(each.tags[key]), int(each.version)))
    return None


def _example(crop: int) -> str:
    """Encodes a ramp of grey levels as a PNG in base64, the form of images in JSON."""
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, crop + crop // 7, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (crop, len(ramp))).copy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _local_folder(location: str) -> Path | None:
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(location)) if is_local_uri(location) else None


def _link_or_copy(source: str, target: str) -> Any:
    try:
        os.link(source, target)
    except FileExistsError:
        os.unlink(target)
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
