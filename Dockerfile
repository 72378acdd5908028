# One image for all services: docker build -t fedround:0.1.0 .
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
# The build tools have a separate environment: the image contains neither pip nor hatchling.
COPY requirements/build.txt requirements/build.txt
RUN python -m venv build && build/bin/python -m pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
# A separate layer: a change of the source does not install the dependencies again. Compiled files contain hashes, not times, so two
# builds are equal.
COPY requirements/runtime.txt requirements/runtime.txt
RUN python -m venv --without-pip /opt/fedround \
    && build/bin/python -m pip --python /opt/fedround/bin/python install --no-cache-dir --no-compile --only-binary :all: \
        --require-hashes --requirement requirements/runtime.txt \
    && find /opt/fedround -type d -name tests -prune -exec rm -r {} + \
    && /opt/fedround/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/fedround/lib
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && build/bin/python -m pip --python /opt/fedround/bin/python install --no-cache-dir --no-compile --no-deps dist/*.whl \
    && /opt/fedround/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/fedround/lib/*/site-packages/fedround /opt/fedround/lib/*/site-packages/xain_sdk

FROM ${PYTHON}
LABEL org.opencontainers.image.title="fedround" \
      org.opencontainers.image.description="Federated learning as a cloud-native service: participant, coordinator, aggregator" \
      org.opencontainers.image.licenses="Apache-2.0"
# A new volume that is mounted here gets the directory's owner: /data for a service's data, /var/lib/fedround for the internal secret of
# two containers. Beside volumes, only /tmp is writable.
RUN install --directory --owner 65532 --group 65532 --mode 0700 /data /var/lib/fedround \
    && chmod 0755 /var/tmp /run/lock
COPY --from=build /opt/fedround /opt/fedround
ENV PATH=/opt/fedround/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
# Python finds modules that are copied here: PARTICIPANT_CLASS=my_module:MyParticipant.
WORKDIR /app
USER 65532:65532
EXPOSE 8080 8081 8082 9081 9082
# Checks a participant. For another service: fedround healthcheck coordinator, or aggregator.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["fedround", "healthcheck"]
ENTRYPOINT ["fedround"]
CMD ["participant"]
