import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[3]
READ = """
import json, resource, sys
from pathlib import Path
from lewel_bench.evals.checkpoints import importer
imported = set(sys.modules)
before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
def seconds():
    several = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in several)
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = seconds()
    try:
        importer.read(path)
        said = "ACCEPTED"
    except ValueError as error:
        said = str(error)
    except BaseException as error:
        said = f"RAISED {error!r}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found[path.name] = said, seconds() - began, (peak - before) / 1024
print(json.dumps([found, sorted(set(sys.modules) - imported)]))
"""
WORDS = {
    "os.system": "posix.system, which is no plain data",
    "builtins.": "builtins.",
    "dotted": "os.path.os.system",
    "nested in an allowed class": "collections.OrderedDict.__class__",
    "a whole model": "save model.state_dict()",
    "TorchScript": "TorchScript",
    "zip with .. slash": "'../../evil'",
    "zip bomb": "compressed member",
    "overlapping": "larger than its",
    "tensor larger": "larger than its storage of 4",
    "storage larger": "its tensors say 4,398,046,511,104",
    "array of objects": "dtype 'O8'",
    "copies of a text": "over and over",
    "copies of a list": "over and over",
    "endless hash": "the key of a dictionary",
    "zip with a flipped byte": "Bad CRC-32",
    "memo far out": "holds",
    "persistent text": "PERSID",
    "extension code": "EXT1",
    "expanded": "larger than its storage",
    "million": "more than 500,000 instructions",
    "BYOL": "The way round",
    "Git LFS": "git lfs pull",
    "link to a device": "no regular file",
    "safetensors, huge header": "1,099,511,627,776 bytes",
}


def test_corpus(tmp_path: Path) -> None:
    """Nothing is executed, everything is refused in one line, quickly and in little memory."""
    mark, folder = tmp_path / "executed", tmp_path / "corpus"
    environment = {
        **os.environ,
        "HOSTILE_MARK": str(mark),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE),
    }
    write = "import sys, pathlib; from tests.evals.checkpoints import hostile; "
    write += "hostile.write(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", write, folder], env=environment, check=True, cwd=HERE)
    done = subprocess.run(
        [sys.executable, "-c", READ, folder], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded, imported = json.loads(done.stdout)
    assert len(loaded) >= 70 and not mark.exists()
    assert not [name for name in imported if name.split(".")[0] in ("subprocess", "haiku", "lib")]
    for name, (message, seconds, megabytes) in loaded.items():
        assert message.startswith(str(folder / name)) and "\n" not in message, (name, message)
        assert seconds < 2.2 and megabytes < 100, (name, seconds, megabytes)
    for begin, words in WORDS.items():
        group = [output for name, (output, *_) in loaded.items() if name.startswith(begin)]
        assert group and any(words in output for output in group), (begin, group)


@pytest.mark.parametrize("new", [True, False])
def test_every_cut_is_noticed(new: bool, tmp_path: Path) -> None:
    """A file that ends anywhere before its end is refused."""
    import random

    import torch

    from lewel_bench.evals.checkpoints import importer
    from tests.evals.checkpoints import layouts

    state = layouts.state(1)
    whole = tmp_path / "whole.pth"
    torch.save(state, whole, _use_new_zipfile_serialization=new)
    importer.read(whole)
    content, cut = whole.read_bytes(), tmp_path / "cut.pth"
    for length in random.Random(0).sample(range(len(content)), 40):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pth: "):
            importer.read(cut)
