#!/usr/bin/env bash
# Runs a command as one rank of a job: rank.sh TABLE GPUS_PER_NODE COMMAND...
# srun starts it once for every rank. It finds its line in the table that place.py wrote, checks that it is where that
# line says and that it sees every GPU, and gives the command what torch.distributed reads.
set -euo pipefail

fail() {
    echo "rank.sh: $*" >&2
    exit 1
}

(($# >= 3)) || fail "usage: rank.sh TABLE GPUS_PER_NODE COMMAND..., started by srun"
table=$1 gpus_per_node=$2
shift 2
rank=${SLURM_PROCID:?rank.sh is for srun to start: SLURM_PROCID is not set}
: "${SLURM_LOCALID:?}" "${SLURMD_NODENAME:?}" "${MASTER_PORT:?the job script sets the port of rank 0}"
[[ -r $table ]] || fail "$SLURMD_NODENAME cannot read $table: use a folder that every node sees"

world_size=0
while read -r number host local_rank local_world_size group; do
    [[ $number == '#' ]] && continue
    ((number != 0)) || first_host=$host
    ((number != rank)) || mine=("$host" "$local_rank" "$local_world_size" "$group")
    ((world_size += 1))
done <"$table"
[[ -v mine ]] || fail "rank $rank is not in $table, which has $world_size: srun started more tasks than were placed"
read -r host local_rank local_world_size group <<<"${mine[*]}"

[[ $host == "$SLURMD_NODENAME" && $local_rank == "$SLURM_LOCALID" ]] ||
    fail "rank $rank is number $SLURM_LOCALID on $SLURMD_NODENAME, but was placed as number $local_rank on $host:" \
        "srun did not follow SLURM_HOSTFILE; it needs --distribution=arbitrary, and options it was given may contradict"

# CUDA numbers the visible GPUs from 0, on every rank of a node alike, so the local rank is the index of a rank's GPU.
if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
    seen=${#gpus[@]}
elif command -v nvidia-smi >/dev/null; then
    seen=$(nvidia-smi -L | grep -c '^GPU ' || true)
else
    seen=$gpus_per_node
fi
((seen == gpus_per_node)) ||
    fail "the GPUs that rank $rank sees on $host are $seen, not $gpus_per_node" \
        "(CUDA_VISIBLE_DEVICES is ${CUDA_VISIBLE_DEVICES-not set}): every rank must see all GPUs of the job there," \
        "and no others; give srun --gpus-per-node, and neither --gpus-per-task nor --gpu-bind"

unset SLURM_HOSTFILE # it would place what the command itself may start with srun
export RANK=$rank WORLD_SIZE=$world_size LOCAL_RANK=$local_rank LOCAL_WORLD_SIZE=$local_world_size
export MASTER_ADDR=$first_host MASTER_PORT
echo "rank $rank of $world_size: group $group, $host, GPU $local_rank of $gpus_per_node"
exec "$@"
