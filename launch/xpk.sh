#!/usr/bin/env bash
# Trains the 10.1B dynamics model with XPK (checked by the dry run of XPK 1.16)
# on one TPU v5p slice of 256 chips (topology 4x8x8, 64 hosts).
#
# Needs   xpk and kubectl; a cluster created by `xpk cluster create --tpu-type
#         v5p-4x8x8 --enable-gcsfuse-csi-driver`, whose nodes and pods have
#         service accounts that may read and write the bucket; the bucket,
#         attached by
#           xpk storage attach bucket --type gcsfuse --bucket $BUCKET \
#             --size 1000 --mount-point /bucket --readonly true \
#             --auto-mount false \
#             --cluster $CLUSTER --project $PROJECT --zone $ZONE
#         an image whose user is root: the TPU driver needs root to lock memory,
#         and XPK does not set the user of pods:
#           docker build -f launch/Dockerfile.tpu --build-arg RUN_AS=0 .
# Set     PROJECT, ZONE, CLUSTER
#         RUN     name of the run, for example platformers-1
#         IMAGE   the image, with its registry and tag
#         BUCKET  bucket with tokens/, where RUN/ and cache/ are written;
#                 without gs://
#
# Start   launch/xpk.sh start
# Watch   launch/xpk.sh watch
# Resume  launch/xpk.sh resume   ends all pods and starts again from the last
#                                checkpoint
# Delete  launch/xpk.sh delete   the bucket keeps the run
#
# XPK restarts after the exit codes 42 and 127 to 255, which include preemption
# (143), a lost host (134) and a host that hung (142). This script adds failures
# (1), but not invalid commands (2) or a loss that is not finite (3). A host
# that stops waiting for the others also exits with 2, so hosts wait a day for a
# host that is repaired or late.
set -euo pipefail

for name in PROJECT ZONE CLUSTER RUN IMAGE BUCKET; do
  if [[ -z "${!name:-}" ]]; then
    echo "$0: $name is not set; see the first lines of this file." >&2
    exit 2
  fi
done
place=(--cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE")

start() {
  # With exec, SIGTERM reaches genie and not the shell.
  xpk workload create "${place[@]}" \
    --workload "$RUN" \
    --docker-image "$IMAGE" \
    --tpu-type v5p-4x8x8 \
    --num-slices 1 \
    --max-restarts 100 \
    --restart-on-exit-codes 1 \
    --termination-grace-period-seconds 300 \
    --storage bucket \
    --command "exec genie train \
      --config experiments/platformers/dynamics.py \
      --workdir gs://$BUCKET/$RUN \
      --config.data.path=/bucket/tokens \
      --compilation-cache gs://$BUCKET/cache \
      --initialization-timeout 86400"
}

delete() {
  xpk workload delete "${place[@]}" --workload "$RUN" --force
}

case "${1:-}" in
  start)
    start
    ;;
  watch)
    xpk workload list "${place[@]}" --filter-by-job "$RUN"
    host=jobset.sigs.k8s.io/jobset-name=$RUN
    host+=,jobset.sigs.k8s.io/job-index=0
    host+=,batch.kubernetes.io/job-completion-index=0
    kubectl logs --follow --tail 50 --selector "$host" --container jax-tpu
    ;;
  resume)
    delete
    start
    ;;
  delete)
    delete
    ;;
  *)
    echo "$0: give start, watch, resume or delete." >&2
    exit 2
    ;;
esac
