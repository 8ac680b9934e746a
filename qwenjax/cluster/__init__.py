"""TPU slices from the command line: create, bootstrap, launch, watch, delete; every step can be printed instead of run.

`pod.py`: what is created, as a value · `gcloud.py`, `xpk.py`: pure functions from that value to command lines ·
`runner.py`: prints or runs them, and explains their errors · `supervise.py`: waits, and starts again after a
preemption · `worker.py`: runs on each VM. `tpu_setup/README.md` walks through it.
"""
