#!/bin/bash
#SBATCH --job-name=vit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH '--output=/shared/my runs/vit/logs/slurm-%j.log'
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --mem=0
#SBATCH '--comment=a long one'

set -e
export XLA_FLAGS='--xla_a=1 --xla_b=2'
source 'my env/bin/activate'
set +e
if [ -n "$SLURM_CPUS_PER_TASK" ]; then  # srun does not take it from sbatch
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
trap : TERM  # it is for the run, which saves; this script waits for it
srun --kill-on-bad-exit=0 --wait=300 bash -c '
    first=$((SLURM_LOCALID * 4))
    export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + 4 - 1)))
    exec "$@"' - \
    /venv/bin/python -m tinker.cli train '--config=/shared/my runs/vit/launch/config.json' '--workdir=/shared/my runs/vit'
code=$?

# 143: it was asked to stop, and has saved. 130: by hand. Larger ones: a process was killed.
restarts=${SLURM_RESTART_COUNT:-0}
if [ $code -eq 143 ] || { [ $code -gt 130 ] && [ $restarts -lt 5 ]; }; then
    state=$(squeue --noheader --states=all --format=%T --jobs=$SLURM_JOB_ID)
    if [ "$state" = RUNNING ]; then  # not CANCELLED
        echo "exit code $code: going back into the queue"
        scontrol requeue $SLURM_JOB_ID
    fi
fi
exit $code
