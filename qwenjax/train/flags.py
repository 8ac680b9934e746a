"""Options for the compiler by kind of accelerator: the one place for them, each with its reason and measured worth.

The worth is in seconds of a 14B step of 4M tokens by the compiler's own model (`python -m qwenjax.plan`).
"""

# Values of loops that gather weights: begin the next layer's gather beside this layer's compute, in several parts.
OVERLAP = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
# On-chip memory that one fusion may use. With the default of 16 MiB matmuls reach 83 % of peak and anything fused into
# them costs extra; with 32 MiB they reach 95 % and element-wise work is nearly free. More takes minutes to compile.
VMEM = {"xla_tpu_scoped_vmem_limit_kib": "32768"}

BY_KIND = {
    "TPU v5 lite": VMEM,  # 10.86 -> 9.94 s; gathers are asynchronous without flags
    "TPU v5": VMEM | OVERLAP,  # v5p: 7.78 -> 7.11 s, and collectives in the open 0.40 -> 0.17 s
    "TPU v5p": VMEM | OVERLAP,
    "TPU v6 lite": {"xla_tpu_scoped_vmem_limit_kib": "65536"} | OVERLAP,  # matmul units of 256: 3.24 -> 2.66 s
}


def compiler_options(device_kind: str) -> dict[str, str]:
    """For `jax.jit`, of the kind that `jax.Device.device_kind` names; nothing for kinds that were not tried."""
    return dict(BY_KIND.get(device_kind, {}))
