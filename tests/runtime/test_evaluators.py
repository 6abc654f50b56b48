"""torch-fidelity scores an evaluation set as docs/evaluation-sets.md says, with the weights of a local file.

The real Inception is a download. A network of the same shape with random weights stands in for it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.test_sample_set import sample_set

DOCS = Path(__file__).parents[2] / "docs" / "evaluation-sets.md"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
SMALL = ["--per-class", 2, "--top-k", 5]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed (extra dev)"),
]

# torchvision's package is compiled for torch with CUDA. Beside torch for CPUs it lacks its own operators, which are not
# needed here, and cannot be imported until something has their names.
IMPORT = """
import sys, torch
names = torch.library.Library("torchvision", "DEF")
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        names.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

FIDELITY = IMPORT + "import runpy; runpy.run_module('torch_fidelity.fidelity', run_name='__main__')"

# Writes the stand-in, whose layers keep the variance of what they read, and the features of the folders by it.
STAND_IN = (
    IMPORT
    + """
from pathlib import Path
from unittest import mock
import numpy as np
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

weights, features, *folders = sys.argv[1:]
with mock.patch("torch.load"), mock.patch.object(Inception, "load_state_dict"):
    network = Inception("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
torch.manual_seed(0)
for module in network.modules():
    if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
        torch.nn.init.kaiming_normal_(module.weight)
torch.save(network.state_dict(), weights)
sets = [[np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))] for folder in folders]
np.save(features, [network(torch.from_numpy(np.stack(one)).permute(0, 3, 1, 2))[0].numpy() for one in sets])
"""
)


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # on a busy machine more threads take three times as long
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=one_thread)
    assert result.returncode == 0, result.stderr
    return result.stdout


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features (N, C), without a root of their covariances.

    The trace of that root is the sum of the singular values of the product of the centred features.
    """
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first.astype(np.float64), second.astype(np.float64))]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    spread = sum(np.square(x).sum() for x in centred)
    return float(np.square(first.mean(0) - second.mean(0)).sum() + spread - 2 * shared)


def documented(replaced: dict[str, Path]) -> list[str]:
    """Return the arguments of `fidelity` in the documentation, with the files of a test."""
    command = re.search(r"^fidelity ((?:.*\\\n)*.*)$", DOCS.read_text(), re.MULTILINE)
    assert command
    words = shlex.split(command[1].replace("\\\n", " "))
    assert replaced.keys() <= set(words)
    return [str(replaced.get(word, word)) for word in words]


def test_the_documented_command_computes_fid(toy_bundle: Path, tmp_path: Path) -> None:
    weights, features, drawn, reference = (tmp_path / name for name in ("inception.pth", "features.npy", "set", "ref"))
    settings = ["--bundle", toy_bundle, *SMALL, "--per-class", 4]  # 12 images in a set: IS has ten parts
    for folder, classes in ((drawn, "0,1,2"), (reference, "2,3,4")):
        assert sample_set(*settings, "--out", folder, "--classes", classes).exit_code == 0
    command = documented({"build/var_d16/set": drawn, "imagenet/train": reference, INCEPTION: weights})
    run(STAND_IN, weights, features, drawn, reference)

    scores = json.loads(run(FIDELITY, *command, "--cpu", "--save-cpu-ram", "--json", "--silent"))

    own = frechet(*np.load(features))
    assert own > 0.01
    assert scores["frechet_inception_distance"] == pytest.approx(own, rel=1e-3)
    assert scores["inception_score_mean"] > 1
