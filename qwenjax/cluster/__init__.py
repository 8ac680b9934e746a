"""TPU slices from the command line: create, bootstrap, launch, watch, delete; every step can be printed instead of run.

`pod.py`: what a slice is, as a value · `gcloud.py`, `xpk.py`: from that value to command lines, purely · `runner.py`:
printing or running them, and what their errors mean · `supervise.py`: waiting, and starting again after a preemption ·
`worker.py`: what runs on each VM. `tpu_setup/README.md` walks through it.
"""
