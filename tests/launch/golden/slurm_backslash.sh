#!/bin/bash
#SBATCH --job-name=vit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue

if [ -n "$SLURM_CPUS_PER_TASK" ]; then  # srun does not take it from sbatch
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
trap : TERM  # it is for the run, which saves; this script waits for it
srun --kill-on-bad-exit=0 --wait=300 /venv/bin/python -m tinker.cli train '--config=/shared/a\b 50%/launch/config.json' '--workdir=/shared/a\b 50%'
code=$?

# 143: it was asked to stop, and has saved. 130: by hand. Larger ones: a process was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if [ $code -eq 143 ] || { [ $code -gt 130 ] && [ $restarts -lt 3 ]; }; then
    state=$(squeue --noheader --states=all --format=%T --jobs=$SLURM_JOB_ID)
    if [ "$state" = RUNNING ]; then  # not CANCELLED
        echo "exit code $code: going back into the queue"
        scontrol requeue $SLURM_JOB_ID
    fi
fi
exit $code
