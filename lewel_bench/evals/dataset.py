"""A data set as a site has it: where its images are, and what stands for them in keys."""

from typing import Literal

from lewel_bench.value import Value

Layout = Literal["folders", "voc", "coco"]


class Dataset(Value):
    """A data set as this site has it. `id` stands for its content in keys."""

    name: str
    id: str
    root: str
    layout: Layout = "folders"
    classes: str | None = None  # a file that lists the classes to use, one a line
    lists: dict[str, str] = {}  # protocol name -> file that lists its labelled subset
