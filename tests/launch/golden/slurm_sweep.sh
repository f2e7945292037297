#!/bin/bash
#SBATCH --job-name=vit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --array=0-15%4
#SBATCH --output=/shared/runs/vit/logs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue

if [ -n "$SLURM_CPUS_PER_TASK" ]; then  # srun does not take it from sbatch
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
trap : TERM  # it is for the run, which saves; this script waits for it
srun --kill-on-bad-exit=0 --wait=300 /venv/bin/python -m tinker.cli train --config=/shared/runs/vit/launch/config.json --workdir=/shared/runs/vit --sweep_index=$SLURM_ARRAY_TASK_ID
code=$?

# 143: it was asked to stop, and has saved. 130: by hand. Larger ones: a process was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if [ $code -eq 143 ] || { [ $code -gt 130 ] && [ $restarts -lt 3 ]; }; then
    state=$(squeue --noheader --states=all --format=%T --jobs=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID)
    if [ "$state" = RUNNING ]; then  # not CANCELLED
        echo "exit code $code: going back into the queue"
        scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    fi
fi
exit $code
