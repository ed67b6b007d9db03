"""Calls whose results must not depend on the process: threads, what malloc returned, repetition.

As a program it writes the results of all of them to a file, so that a test can compare processes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from support_kernels import F32, F64, FEW, MANY, Sample, Variant, value_and_grads


@dataclass(frozen=True)
class Case:
    path: Variant
    sample: Sample
    dtype: torch.dtype = F32
    reduction: str = "none"
    diversity_weight: float | None = None  # the sample's

    def inputs(self):
        """Features, prototypes, targets with a few rows ignored, upstream gradient, keywords."""
        f, w, y = self.sample.inputs(self.dtype)
        y[1::17] = -100
        compute = F64 if self.dtype == F64 else F32
        upstream = self.sample.upstream(compute) if self.reduction == "none" else None
        keywords = {**self.sample.keywords, "reduction": self.reduction}
        if self.diversity_weight is not None:
            keywords["diversity_weight"] = self.diversity_weight
        return f, w, y, upstream, keywords

    def run(self) -> tuple[torch.Tensor, ...]:
        """Loss and both gradients, and the loss without a graph."""
        f, w, y, upstream, keywords = self.inputs()
        with torch.no_grad():
            alone = self.path(f, w, y, **keywords)
        return (*value_and_grads(self.path, f, w, y, upstream, **keywords), alone)


CASES = {
    "few": Case(FEW, Sample(150, 9, dim=300)),
    "few-mean": Case(FEW, Sample(150, 9, dim=300), F64, "mean"),
    "few-many-rows": Case(FEW, Sample(3000, 5, 3, dim=20)),
    "few-many-columns": Case(FEW, Sample(40, 9, dim=2100)),
    "few-long-rows": Case(FEW, Sample(300, 9, dim=2100)),
    "few-half": Case(FEW, Sample(70, 9, dim=33), torch.bfloat16),
    "few-without-diversity": Case(FEW, Sample(70, 9, dim=33), diversity_weight=0.0),
    "few-two-classes": Case(FEW, Sample(70, 2, dim=33)),
    "many-pairs": Case(MANY, Sample(140, 70, dim=130)),
    "many-moments": Case(MANY, Sample(140, 300, dim=33), reduction="mean"),
    "many-double": Case(MANY, Sample(140, 300, dim=33), F64),
    "many-centres": Case(MANY, Sample(140, 90, 3, dim=33), reduction="sum"),
    "many-near-prototypes": Case(MANY, Sample(300, 400, dim=40, distance=0.05)),
    "many-off-origin": Case(MANY, Sample(140, 300, dim=33, offset=50.0)),
    "many-half": Case(MANY, Sample(140, 90, dim=33), torch.float16),
    "many-without-diversity": Case(MANY, Sample(140, 90, dim=33), diversity_weight=0.0),
    # In so few dimensions some pairs of any blocks and tiles are near.
    "many-near-pairs": Case(MANY, Sample(1300, 600, dim=3)),
    "many-near-pairs-half": Case(MANY, Sample(300, 130, 3, dim=2), torch.bfloat16),
    # Rows and prototypes enough for blocks cut in two and several tiles.
    "many-cut-blocks": Case(MANY, Sample(1300, 300, 2, dim=37)),
    "many-cut-blocks-off-origin": Case(MANY, Sample(1300, 600, dim=70, offset=30.0)),
    "many-cut-blocks-near": Case(MANY, Sample(1300, 600, dim=37, distance=0.05)),
    "many-cut-blocks-half": Case(MANY, Sample(1300, 600, dim=37), torch.float16),
    "many-moments-strips": Case(MANY, Sample(140, 300, dim=130)),
    "many-moments-far-off-origin": Case(MANY, Sample(20, 130, dim=128, offset=1e4), F64),
    "many-moments-centred": Case(MANY, Sample(140, 300, dim=130, offset=2.0)),
    "many-rows-recomputed": Case(MANY, Sample(2100, 2100, dim=6)),
    "many-near-rows-recomputed": Case(MANY, Sample(2100, 2100, dim=16, distance=0.05)),
    "many-pairs-not-kept": Case(MANY, Sample(5, 1030, dim=1031)),
    "many-moments-not-kept": Case(MANY, Sample(5, 1040, dim=1030)),
}


def main(output: str) -> None:
    # glibc fills what it allocates and frees when MALLOC_PERTURB_ asks for it.
    fresh = torch.empty(1 << 12, dtype=torch.uint8)
    results = {name: case.run() for name, case in CASES.items()}
    torch.save({"fresh": fresh, "results": results}, output)


if __name__ == "__main__":
    main(sys.argv[1])
