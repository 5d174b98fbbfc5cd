# The plugin in NVIDIA's Triton container: its tritonserver, its Python backend and its TensorRT.
#
#   docker build -t triton-taylorseer .
#
# 25.10 has CUDA 13.0 and Python 3.12, as torch's own wheels of 2.13.0 want (docs/containers.md has the matrix).
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.10-py3

FROM ${TRITON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY taylorseer taylorseer
COPY plugin plugin
COPY clients clients
COPY benchmarks benchmarks
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${TRITON_IMAGE}
# In the system's own Python, which is the one that the Python backend starts models with.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m pip install torch==2.13.0
COPY --from=wheel /wheel /wheel
RUN python3 -m pip install /wheel/*.whl && rm -r /wheel
# TensorRT's Python module, of exactly the version that the image's libraries have: another one cannot load its engines.
RUN version="$(dpkg-query --show --showformat='${Version}' 'libnvinfer1[0-9]' | cut -d- -f1)" \
    && test -n "$version" \
    && { python3 -c "import tensorrt" 2>/dev/null || python3 -m pip install "tensorrt==$version"; } \
    && found="$(python3 -c 'import tensorrt; print(tensorrt.__version__)')" \
    && { test "$found" = "${version%%+*}" || { echo "tensorrt is $found, the image's libraries are $version" >&2; exit 1; }; }
# For GPUs that TensorRT-RTX serves: docker build --build-arg TENSORRT_RTX=1.7.1.116 .
ARG TENSORRT_RTX=
RUN if [ -n "$TENSORRT_RTX" ]; then python3 -m pip install "tensorrt-rtx==$TENSORRT_RTX"; fi

COPY model_repository /opt/taylorseer/model_repository
COPY examples /opt/taylorseer/examples
# Owned by the user that runs: a new named volume takes over what is there.
RUN useradd --create-home --uid 10001 taylorseer && mkdir -p /engines /weights && chown taylorseer /engines /weights
USER taylorseer
ENV TRITON_TAYLORSEER_CACHE=/engines HF_HOME=/weights
VOLUME /engines /weights
EXPOSE 8000 8001 8002
# The health endpoint stays green when a worker process has died: a tiny picture tells.
HEALTHCHECK --interval=30s --timeout=20s --start-period=10m --retries=3 \
    CMD triton-taylorseer health --model "${TAYLORSEER_HEALTH_MODEL:-emoji}"
ENTRYPOINT ["triton-taylorseer"]
CMD ["serve", "--host", "0.0.0.0", "--model-repository", "/opt/taylorseer/model_repository"]
