"""Is the state space model inside a Mamba block worth having for vision? A controlled test.

Data flows one way:

    conf/ + experiments/ -> sweep -> run -> data, task(backbone) -> record -> table -> verdict -> report -> results/

config.py     composes the Hydra groups of conf/ into the plain values of one run
sweep.py      a hypothesis of experiments/: starts the runs that are missing, then writes the report
slurm.py      the same by jobs of a cluster, each a sweep of one run
run.py        the runner: one config in, one record out; with mode=eval, given weights in, one evaluation out
data/         the demo's embedded data, the layouts of ImageNet, COCO and ADE20K, and their check before a run
tasks/        what is trained and measured: build(run) -> job, train(job), evaluate(job) -> metrics
pretrained.py the weights that a backbone starts from in detection and segmentation
metrics.py    every metric: name, unit, and the step that it is measured in
backbones/    the networks: MambaOut with the switch between its arms, ViT with its causal switch; the selective scan and
              the kernels that make them fast on a CPU; published weights for them
cost.py       what a network costs: parameters, MACs with the scan, memory for training, tokens; prints them as a table
allocator.py  memory that a CPU run keeps for its next tensors
record.py     what a run leaves behind: identity, address, write, read back as a table
attempts.py   every beginning and end of a run
bootstrap.py  uncertainty over images, from what each run keeps of every one
experiment.py a hypothesis: claim, arms, seeds, margin, gates, positive control
verdict.py    from paired metrics to supported, refuted or inconclusive
response.py   the verdict of a dose-response: a slope per seed against L/(6D)
report/       records and hypotheses -> results/report/: page, figures, tables
notebook.py   what the notebooks share
power.py      what more seeds would decide
tracking.py   what W&B is told of a run, and how; tracker.py, the process that tells it
publish.py    a finished sweep, told again from its records, with a workspace; dashboard.py shows what is kept here
progress.py   a run's bar, its metrics as rows of a file, and its heartbeat
"""
