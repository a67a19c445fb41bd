#!/usr/bin/env bash
# Trains the 10.1B dynamics model on TPU virtual machines of a queued resource,
# on a v5p-512: 256 chips (topology 4x8x8) in 64 hosts. The name counts the
# cores, of which each chip has two.
#
# Needs   gcloud; a service account of the machines that may read IMAGE and
#         read and write BUCKET
# Set     PROJECT, ZONE
#         RUN     name of the run, the queued resource and the TPU
#         IMAGE   image of launch/Dockerfile.tpu, with its registry and tag
#         BUCKET  bucket with tokens/, where RUN/ and cache/ are written;
#                 without gs://
#
# Start   launch/queued_resource.sh start [--spot | --reserved | ...]
#         waits in the queue, then starts the container on every host
# Watch   launch/queued_resource.sh watch
# Resume  launch/queued_resource.sh resume [--spot | ...]
#         starts again from the last checkpoint; after a preemption it first
#         queues for new machines
# Delete  launch/queued_resource.sh delete   saves; the bucket keeps the run
#
# Docker restarts a container that did not exit with 0, up to 100 times. This
# includes an invalid command (2), so watch the first minutes. After a
# preemption the slice no longer exists and the queued resource stays SUSPENDED.
# Only `resume` requests a new one; call it from a cron job to automate this.
#
# After a reboot of a host, its container does not start, or fails because
# /bucket is not mounted. Call `resume`, which mounts it and restarts all hosts.
set -euo pipefail

for name in PROJECT ZONE RUN IMAGE BUCKET; do
  if [[ -z "${!name:-}" ]]; then
    echo "$0: $name is not set; see the first lines of this file." >&2
    exit 2
  fi
done
place=(--project "$PROJECT" --zone "$ZONE")

state() {
  gcloud compute tpus queued-resources describe "$RUN" "${place[@]}" \
    --format 'value(state.state)'
}

enqueue() {
  gcloud compute tpus queued-resources create "$RUN" "${place[@]}" \
    --node-id "$RUN" --accelerator-type v5p-512 \
    --runtime-version v2-alpha-tpuv5 "$@"
}

wait_for_machines() {
  local now
  now=$(state)
  until [[ "$now" == ACTIVE ]]; do
    if [[ "$now" == FAILED || "$now" == SUSPENDED ]]; then
      echo "$0: the request for $RUN is $now; \`$0 resume\` repeats it." >&2
      exit 1
    fi
    echo "$(date +%H:%M) $RUN: $now"
    sleep 60
    now=$(state)
  done
}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$RUN" "${place[@]}" --worker=all \
    --command "$1"
}

# Prints the script that each host runs. The TPU driver needs root and locked
# memory. The container uses the host's network, to reach the other hosts and
# the metadata server.
host_script() {
  local apt=https://packages.cloud.google.com/apt
  local key=/usr/share/keyrings/cloud.google.asc
  cat << EOF
set -euo pipefail
if ! command -v gcsfuse > /dev/null; then
  curl -fsS $apt/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-\$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -q -o DPkg::Lock::Timeout=600 update
  sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
sudo mkdir -p /bucket
mountpoint -q /bucket ||
  sudo gcsfuse --implicit-dirs -o ro "$BUCKET" /bucket
sudo gcloud auth configure-docker "${IMAGE%%/*}" --quiet
if sudo docker container inspect genie > /dev/null 2>&1; then
  sudo docker stop genie
  sudo docker rm genie
fi
sudo docker run --detach --name genie \
  --restart on-failure:100 --stop-timeout 300 \
  --privileged --user root --net host --shm-size 16g \
  --volume /bucket:/bucket:ro \
  "$IMAGE" genie train \
  --config experiments/platformers/dynamics.py \
  --workdir "gs://$BUCKET/$RUN" \
  --config.data.path=/bucket/tokens \
  --compilation-cache "gs://$BUCKET/cache" \
  --initialization-timeout 86400
EOF
}

delete() {
  gcloud compute tpus queued-resources delete "$RUN" "${place[@]}" \
    --force --quiet
}

verb=${1:-}
case "$verb" in
  start)
    enqueue "${@:2}"
    wait_for_machines
    on_all_hosts "$(host_script)"
    ;;
  watch)
    state
    gcloud compute tpus tpu-vm ssh "$RUN" "${place[@]}" --worker=0 \
      --command 'sudo docker logs --follow --tail 50 genie'
    ;;
  resume)
    now=$(state)
    # A request that still waits keeps its place in the queue.
    if [[ "$now" == FAILED || "$now" == SUSPENDED ]]; then
      delete
      enqueue "${@:2}"
    fi
    wait_for_machines
    on_all_hosts "$(host_script)"
    ;;
  delete)
    now=$(state)
    if [[ "$now" == ACTIVE ]]; then
      on_all_hosts 'sudo docker stop genie' ||
        echo "$0: not all hosts received the request to save." >&2
    fi
    delete
    ;;
  *)
    echo "$0: give start, watch, resume or delete." >&2
    exit 2
    ;;
esac
