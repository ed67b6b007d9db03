"""The Triton backend: operators `torch.ops.cfal_triton.forward` and `.backward`.

`availability` says whether they serve, without importing triton; `operators` defines them. For
few prototypes `few` launches `few_kernels`; for many, `many` launches those of `many_rows`,
`many_affinities` and `many_backward` (which takes near pairs from `many_near`), and takes the
diversity term from `many_diversity`. Launch shapes come from `config`, row formulas from `formulas`
and, where kernels are interpreted, repairs from `interpreter`.
"""
