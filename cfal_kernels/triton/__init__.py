"""The Triton backend: operators `torch.ops.cfal_triton.forward` and `.backward`.

`availability` says whether they serve, without importing triton; `operators` defines them. They
serve few prototypes: `few` launches `few_kernels`, with the launch shapes of `config`, the row
formulas of `formulas` and, where kernels are interpreted, the repairs of `interpreter`.
"""
