#!/bin/sh
# perf_analyzer's recipes of docs/benchmarking.md: perf_analyzer.sh RECIPE [further options of perf_analyzer]
#
#   stream     a closed loop of 1 to 8 clients through gRPC streams
#   grpc       a closed loop of 4 clients, plain calls over gRPC
#   http       the same over HTTP
#   arrivals   random arrivals through gRPC streams, 1 to 3 a second
#
# Give both ends of a range among the further options, as --concurrency-range 2:2: an end that is left out is the recipe's.
#
# From the environment: MODEL, TRITON (a host), HTTP_PORT, GRPC_PORT, REQUESTS (perf_analyzer's input data).
set -eu
recipe=${1:-}
[ $# -eq 0 ] || shift
model=${MODEL:-emoji}
grpc=${TRITON:-localhost}:${GRPC_PORT:-8001}
http=${TRITON:-localhost}:${HTTP_PORT:-8000}
# Three windows and no more: by default they are repeated until they agree, and a run in which they never do fails.
set -- --input-data "${REQUESTS:-benchmarks/requests.json}" --measurement-interval 10000 -s 999 -r 3 "$@"
case $recipe in
  stream) exec perf_analyzer -m "${model}_stream" -u "$grpc" -i grpc --streaming --concurrency-range 1:8 "$@" ;;
  grpc) exec perf_analyzer -m "$model" -u "$grpc" -i grpc --concurrency-range 4 "$@" ;;
  http) exec perf_analyzer -m "$model" -u "$http" -i http --concurrency-range 4 "$@" ;;
  arrivals)
    exec perf_analyzer -m "${model}_stream" -u "$grpc" -i grpc --streaming --request-rate-range 1:3:1 \
      --request-distribution poisson "$@"
    ;;
  *)
    echo "the recipe is '$recipe', must be one of: stream, grpc, http, arrivals" >&2
    exit 2
    ;;
esac
