# The plugin in NVIDIA's Triton container: its tritonserver, its Python backend and its TensorRT.
#
#   docker build -t triton-taylorseer .
#
# 26.05 has CUDA 13.2 and Python 3.12, with which torch's own wheels of 2.13.0 (CUDA 13.0) run. Exactly this one: one request
# header ends 26.06 to 26.08 (docs/containers.md has the matrix, and what each release mended).
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.05-py3

FROM ${TRITON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
# In a step of their own, so that a change of our source does not install gigabytes again.
RUN python3 -c "import pathlib, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
others = [each for each in project['dependencies'] if not each.startswith('triton-taylorseer-client')]; \
pathlib.Path('/requirements.txt').write_text('\n'.join(others + extras['vision'])); \
pathlib.Path('/fp8.txt').write_text('\n'.join(extras['fp8'])); \
pathlib.Path('/quantization.txt').write_text('\n'.join(extras['quantization']))"
COPY deploy/constraints.txt /constraints.txt
COPY taylorseer taylorseer
COPY triton_taylorseer triton_taylorseer
COPY plugin plugin
COPY clients clients
COPY benchmarks benchmarks
RUN PIP_CONSTRAINT=/constraints.txt python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . ./clients/python

# A virtual environment: pip cannot replace what the distribution installed, and torch needs a newer setuptools. Its Python is
# the system's, which the Python backend is built for. It is first on PATH, so the backend finds its modules.
FROM ${TRITON_IMAGE} AS environment
# pip comes from the system's Python, as the image may lack ensurepip.
RUN python3 -m venv --without-pip /opt/taylorseer/venv \
    && python3 -m pip --python /opt/taylorseer/venv/bin/python install --no-cache-dir pip==26.3 wheel==0.48.0
ENV PATH=/opt/taylorseer/venv/bin:${PATH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY --from=wheel /requirements.txt /constraints.txt /tmp/
RUN pip install -c /tmp/constraints.txt -r /tmp/requirements.txt
# TensorRT's Python module alone, in exactly the version of the image's libraries: another one cannot load its engines.
# With its dependencies pip would also install the libraries, gigabytes from NVIDIA's index.
ARG TENSORRT=10.16.1.11
RUN NVIDIA_TENSORRT_DISABLE_INTERNAL_PIP=1 pip install --no-deps --no-build-isolation \
        "tensorrt-cu13==$TENSORRT" "tensorrt-cu13-bindings==$TENSORRT"
RUN python3 -c "import ctypes, sys, tensorrt; \
module = tensorrt.__version__.split('.post')[0]; \
library = ctypes.CDLL('libnvinfer.so.' + module.split('.')[0]); \
parts = ('Major', 'Minor', 'Patch', 'Build'); \
found = '.'.join(str(getattr(library, f'getInferLib{part}Version')()) for part in parts); \
sys.exit(None if module == found else f'the module is of {module}, the libraries are of {found}')" \
    || { echo "TensorRT $TENSORRT is not what the image has: give its version as --build-arg TENSORRT=…" >&2; exit 1; }
# For GPUs that TensorRT-RTX serves: docker build --build-arg TENSORRT_RTX=1.7.1.116 .
ARG TENSORRT_RTX=
RUN if [ -n "$TENSORRT_RTX" ]; then pip install "tensorrt-rtx==$TENSORRT_RTX"; fi
# To build engines in fp8: docker build --build-arg FP8=1 .
ARG FP8=
COPY --from=wheel /fp8.txt /tmp/
RUN if [ -n "$FP8" ]; then pip install -c /tmp/constraints.txt -r /tmp/fp8.txt; fi
# For weights below 16 bits: docker build --build-arg QUANTIZATION=1 .
ARG QUANTIZATION=
COPY --from=wheel /quantization.txt /tmp/
RUN if [ -n "$QUANTIZATION" ]; then pip install -c /tmp/constraints.txt -r /tmp/quantization.txt; fi

FROM ${TRITON_IMAGE} AS served
COPY model_repository /served/model_repository
COPY examples /served/examples
# COPY keeps the modes of the checkout, and under a strict umask only its owner reads it.
RUN chmod -R a+rX /served

FROM ${TRITON_IMAGE}
COPY --from=environment /opt/taylorseer/venv /opt/taylorseer/venv
ENV PATH=/opt/taylorseer/venv/bin:${PATH}
# After the environment, which is gigabytes and rarely changes.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --disable-pip-version-check /wheel/*.whl
COPY --from=served /served /opt/taylorseer
# Owned by the user that runs: a new named volume takes its owner from here.
RUN useradd --no-log-init --create-home --uid 10001 taylorseer \
    && mkdir -p /engines /weights \
    && chown taylorseer /engines /weights
# By number, so that Kubernetes can see that it is not root.
USER 10001
# Where it writes: the root can be read-only.
ENV TRITON_TAYLORSEER_CACHE=/engines TRITON_CACHE_DIR=/engines/kernels HF_HOME=/weights
EXPOSE 8000 8001 8002
# Triton's health endpoint still reports ready when a worker process has died, so the check makes a picture of one step.
# In shell form, for the variable.
# hadolint ignore=DL3025
HEALTHCHECK --interval=30s --timeout=20s --start-period=10m --retries=3 \
    CMD triton-taylorseer health --model "${TAYLORSEER_HEALTH_MODEL:-emoji}"
ENTRYPOINT ["triton-taylorseer"]
CMD ["serve", "--host", "0.0.0.0", "--model-repository", "/opt/taylorseer/model_repository"]
