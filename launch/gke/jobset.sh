#!/usr/bin/env bash
# Trains the 10.1B dynamics model on GKE with launch/gke/jobset.yaml, on TPU v5p
# slices of 256 chips (topology 4x8x8, 64 hosts).
#
# Needs   kubectl; the cluster, node pool and bucket of docs/launch.md
# Set     RUN     name of the run, for example platformers-1
#         IMAGE   image of launch/Dockerfile.tpu, with its registry and tag
#         BUCKET  bucket with tokens/, where RUN/ and cache/ are written;
#                 without gs://
#         SLICES  number of slices, each a node pool; 1 if it is not set. With 2
#                 or more, hosts also save in their memory every 20 steps
#                 (emergency checkpoints, docs/multihost.md)
#
# Start   launch/gke/jobset.sh start
# Watch   launch/gke/jobset.sh watch
# Resume  launch/gke/jobset.sh resume   ends all pods and starts again from the
#                                       last checkpoint
# Delete  launch/gke/jobset.sh delete   the bucket keeps the run
#         (resume and delete wait until all pods have saved and ended, which may
#         take 300 s)
#
# If a host is preempted or lost, the JobSet restarts all hosts. The hosts find
# each other through environment variables that GKE sets.
set -euo pipefail

for name in RUN IMAGE BUCKET; do
  if [[ -z "${!name:-}" ]]; then
    echo "$0: $name is not set; see the first lines of this file." >&2
    exit 2
  fi
done
if [[ ! "$RUN" =~ ^[a-z]([-a-z0-9]{0,37}[a-z0-9])?$ ]]; then
  echo "$0: RUN=$RUN names Kubernetes objects; use a-z, 0-9 and -." >&2
  exit 2
fi

if [[ ! "${SLICES:=1}" =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: SLICES=$SLICES is not a number of slices." >&2
  exit 2
fi

# Deletes the JobSet and waits until its last pod has ended. By default kubectl
# does not wait for the pods, and they might still save when `resume` creates
# the next JobSet with the same name.
end_all() {
  kubectl delete jobset "$RUN" --cascade=foreground --wait "$@"
}

# Lines of the manifest that begin with "# slices:" are for several slices.
manifest() {
  local several="/# slices: /d" flags=""
  if (( SLICES > 1 )); then
    several="s|# slices: ||"
    # With one microbatch, 512 clips split over the 512 chips of two slices.
    flags="--config.optimizer.accumulate=1 --config.emergency_every=20"
    flags+=" --config.emergency_folder=/copies"
  fi
  sed -e "s|\${RUN}|$RUN|g" -e "s|\${IMAGE}|$IMAGE|g" \
    -e "s|\${BUCKET}|$BUCKET|g" -e "s|\${SLICES}|$SLICES|g" \
    -e "s| *\${FLAGS}|${flags:+ $flags}|" -e "$several" \
    "$(dirname "$0")/jobset.yaml"
}

case "${1:-}" in
  start)
    manifest | kubectl create --filename -
    ;;
  watch)
    kubectl get jobset "$RUN"
    host=jobset.sigs.k8s.io/jobset-name=$RUN
    host+=,jobset.sigs.k8s.io/job-index=0
    host+=,batch.kubernetes.io/job-completion-index=0
    kubectl logs --follow --tail 50 --selector "$host" --container genie
    ;;
  resume)
    end_all --ignore-not-found
    manifest | kubectl create --filename -
    ;;
  delete)
    end_all
    ;;
  *)
    echo "$0: give start, watch, resume or delete." >&2
    exit 2
    ;;
esac
