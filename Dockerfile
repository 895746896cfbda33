# One Flywheel worker; docker-compose.yml builds it.
FROM python:3.11-slim
WORKDIR /opt/flywheel
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY labeling labeling
COPY retrain retrain
COPY streams streams
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 flywheel \
    && mkdir /state && chown flywheel /state
USER flywheel
VOLUME /state
CMD ["flywheel", "worker"]
