"""TPU slices from the command line: create, bootstrap, launch, watch, delete; every step can be printed instead of run.

pod: what is created, as a value · gcloud, xpk: from that value to command lines · runner: prints or runs them ·
supervise: waits, and starts again after a preemption · worker: runs on each VM. See tpu_setup/README.md.
"""
