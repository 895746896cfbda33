"""Producer of the three events of a model: what it was asked, what it answered, and what turned out to be true.

One file for services: it needs Python, confluent-kafka and fastavro, imports nothing else of Flywheel, and may be
copied into a service. Logging never blocks and never raises in the request path: the queue is bounded, what does not
fit or does not validate is dropped, counted by reason (:meth:`FlywheelClient.stats`) and the first few are logged. Safe
to use from many threads and across ``os.fork``; the queue is flushed at exit.

    client = FlywheelClient("broker:9092", "churn", contract="churn.avsc", registry="https://registry.example")
    client.log_input("id-1", {"age": 31, "plan": "pro"}, event_time=now)
    client.log_prediction("id-1", event_time=now, version="7", score=0.83, label="stays")
    client.log_feedback("id-1", event_time=later, label="leaves")
"""

from __future__ import annotations

import atexit
import base64
import ctypes
import hashlib
import http.client
import io
import json
import logging
import os
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import KafkaError, KafkaException, Producer

log = logging.getLogger("flywheel.client")

TOPICS = {"inputs": "flywheel.inputs.v1", "predictions": "flywheel.predictions.v1", "feedback": "flywheel.feedback.v1"}
QUEUE_MESSAGES_MAX = 100_000
QUEUE_KBYTES_MAX = 64 * 1024
DELIVERY_TIMEOUT_MS = 300_000
"""How long an event waits for a broker that is away before it is dropped."""
PATIENCE_S = DELIVERY_TIMEOUT_MS / 1000 + 60
PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # noqa: SLF001 - of a replaced producer, and counted
EXIT_FLUSH_S = 10.0
REGISTRY_TIMEOUT_S = 10.0
REGISTRY_RETRY_S = 2.0
LOGGED_FIRST = 5
EVENT_TIME_MIN_US = 100_000_000_000_000
"""March 1973 in microseconds: a smaller number is seconds or milliseconds by mistake."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Time = datetime | int | None


def _record(name: str, doc: str, *fields: tuple[str, Any, str]) -> dict[str, Any]:
    """An Avro record from (name, type, doc) rows."""
    rows = [{"name": field, "type": kind, **({"doc": text} if text else {})} for field, kind, text in fields]
    return {"type": "record", "name": name, "namespace": "flywheel", "doc": doc, "fields": rows}


TEXT, NUMBER, WHOLE = ["null", "string"], ["null", "double"], ["null", "long"]
MICROSECONDS = "microseconds since 1970 UTC"
PREDICTION_SCHEMA = _record(
    "Prediction",
    "What a model answered.",
    ("prediction_id", "string", "also the Kafka key"),
    ("model", "string", ""),
    ("version", "string", "the model version that answered"),
    ("role", "string", "champion, challenger, shadow or canary"),
    ("event_time", "long", MICROSECONDS),
    (
        "score",
        NUMBER,
        "binary: probability of the positive label; multiclass: confidence of label; regression: the value",
    ),
    ("label", TEXT, "the predicted class"),
    ("truth_due", WHOLE, "when the truth is decided at the latest, microseconds"),
)
FACT = {
    "type": "record",
    "name": "Fact",
    "fields": [{"name": "name", "type": "string"}, {"name": "value", "type": "double"}],
}
FEEDBACK_SCHEMA = _record(
    "Feedback",
    "What turned out to be true, or what a user said.",
    ("feedback_id", "string", "the same id again is a duplicate"),
    ("prediction_id", "string", "also the Kafka key"),
    ("model", "string", ""),
    ("event_time", "long", MICROSECONDS),
    ("kind", "string", "truth or user"),
    ("label", TEXT, ""),
    ("value", NUMBER, "the true value of a regression"),
    ("facts", {"type": "array", "items": FACT}, "numbers that came with it; the contract names them"),
    ("note", TEXT, ""),
)


class InvalidEvent(ValueError):
    """An event that does not fit its schema; raised to the caller only by a strict client."""


class SchemaRefused(RuntimeError):
    """The registry does not accept a schema."""


def input_schema(contract: Mapping[str, Any]) -> dict[str, Any]:
    """The Avro schema of a model's inputs: the envelope around the features of its contract."""
    features = {
        "type": "record",
        "name": contract["name"],
        "namespace": contract.get("namespace", "flywheel.features"),
        "fields": [{k: v for k, v in f.items() if k in ("name", "type", "default")} for f in contract["fields"]],
    }
    return _record(
        "Input",
        "What a model was asked.",
        ("prediction_id", "string", "also the Kafka key"),
        ("model", "string", ""),
        ("event_time", "long", MICROSECONDS),
        ("subject", TEXT, "whom the event is about, for erasure"),
        ("features", features, ""),
    )


class Patience:
    """Whether a producer has got rid of nothing for too long.

    librdkafka gives an event up after ``message.timeout.ms``. But a producer was seen (2.16, its only broker had
    restarted) that never connected again, and gave up nothing either: then only another one helps.
    """

    def __init__(self, seconds: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._done, self._since = -1, clock()

    def is_over(self, done: int, waiting: int) -> bool:
        """Look at how many events it has got rid of so far, delivered or not, and how many it holds."""
        now = self._clock()
        if done != self._done or not waiting:
            self._done, self._since = done, now
        return now - self._since > self._seconds


def abandon(producer: Producer) -> None:
    """Let go of a producer that is stuck; to end it may take long, so a thread does it."""
    threading.Thread(target=producer.purge, name="flywheel-purge", daemon=True).start()


class FlywheelClient:
    """Logs the events of one model.

    Parameters
    ----------
    brokers
        ``host:port`` of one or more brokers, separated by commas.
    model
        The model's name.
    contract
        The model's contract: a path to its ``.avsc`` or the parsed document. None for a service that logs no inputs.
    registry
        Where schema ids come from: the path of Flywheel's registry file (``.flywheel/registry.json``) or the URL of a
        Confluent-compatible schema registry. An unknown schema is registered.
    version, role
        Defaults for :meth:`log_prediction`.
    strict
        Raise :class:`InvalidEvent` and :class:`SchemaRefused` instead of counting: for tests and batch jobs.
    queue_messages_max
        Events that may wait for the broker; more are dropped and counted.
    kafka
        More librdkafka settings, such as ``{"security.protocol": "SASL_SSL", ...}``.
    """

    def __init__(
        self,
        brokers: str,
        model: str,
        *,
        registry: str | Path,
        contract: str | Path | Mapping[str, Any] | None = None,
        version: str = "",
        role: str = "champion",
        strict: bool = False,
        queue_messages_max: int = QUEUE_MESSAGES_MAX,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self._version, self._role, self._strict = model, version, role, strict
        document = _document(contract)
        if document is not None and document.get("model", model) != model:
            raise ValueError(f"the contract is of the model {document['model']!r}, not {model!r}")
        self._schemas: dict[str, Any] = {"predictions": PREDICTION_SCHEMA, "feedback": FEEDBACK_SCHEMA}
        self._features: frozenset[str] = frozenset()
        if document is not None:
            self._schemas["inputs"] = input_schema(document)
            self._features = frozenset(field["name"] for field in document["fields"])
        self._parsed = {noun: fastavro.parse_schema(schema) for noun, schema in self._schemas.items()}
        self._settings = {
            "client.id": f"flywheel-{model}",
            "partitioner": "murmur2_random",  # Java's; librdkafka's default puts the same key elsewhere
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 20,
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
            "queue.buffering.max.messages": queue_messages_max,
            "queue.buffering.max.kbytes": QUEUE_KBYTES_MAX,
            "delivery.report.only.error": True,
            "log_level": 2,
            **(kafka or {}),
            "bootstrap.servers": brokers,
            "error_cb": self._on_error,
        }
        self._registry = registry
        self._hold_max = queue_messages_max
        self._refused: set[str] = set()
        self._headers: dict[str, bytes] = {}
        self._start()
        self._new_producer()  # wrong settings are told here, not in the request path
        _clients.add(self)
        if not self._try_resolve():
            self._retry_later()

    def _start(self) -> None:
        """State of this process: called at the start, and in the child of a fork."""
        self._lock = threading.RLock()
        self._count_lock = threading.Lock()
        self._producer: Producer | None = None
        self._patience = Patience(PATIENCE_S)
        self._held: deque[tuple[str, str, bytes]] = deque()
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._retrying = False

    def log_input(
        self,
        prediction_id: str,
        features: Mapping[str, Any],
        event_time: Time = None,
        subject: str | None = None,
    ) -> bool:
        """Log what the model was asked.

        Parameters
        ----------
        prediction_id
            Joins the three events; also the Kafka key.
        features
            By the contract's names. A nullable one may be missing; a name that the contract does not have is left out
            and counted.
        event_time
            An aware datetime or microseconds since 1970 UTC; default: now.
        subject
            Whom it is about, so that it can be erased.

        Returns
        -------
        Whether it was queued.
        """
        if isinstance(features, Mapping) and not self._features.issuperset(features):
            self._note("unknown feature", ", ".join(sorted(map(str, set(features) - self._features))[:5]))
        body = {"event_time": event_time, "subject": subject, "features": features}
        return self._log("inputs", prediction_id, body)

    def log_prediction(
        self,
        prediction_id: str,
        event_time: Time = None,
        *,
        score: float | None = None,
        label: str | None = None,
        version: str | None = None,
        role: str | None = None,
        truth_due: Time = None,
    ) -> bool:
        """Log what the model answered.

        Parameters
        ----------
        score
            Binary: the probability of the positive label; multiclass: the confidence of ``label``; regression: value.
        version, role
            Which model answered, and as what (champion, challenger, shadow or canary); default: the client's.
        truth_due
            When the truth is decided at the latest.
        """
        body = {
            "version": self._version if version is None else version,
            "role": self._role if role is None else role,
            "event_time": event_time,
            "score": score,
            "label": label,
            "truth_due": truth_due,
        }
        return self._log("predictions", prediction_id, body)

    def log_feedback(
        self,
        prediction_id: str,
        event_time: Time = None,
        *,
        label: str | None = None,
        value: float | None = None,
        kind: str = "truth",
        facts: Mapping[str, float] | None = None,
        note: str | None = None,
        feedback_id: str | None = None,
    ) -> bool:
        """Log what turned out to be true (``kind="truth"``), or what a user said (``kind="user"``).

        A user's label is ``right`` (took the answer), ``edited`` (took it after a change) or ``wrong``.
        ``facts`` are the numbers that the contract names. Without a ``feedback_id`` it is made of the content, so that
        the same feedback sent again is a duplicate.
        """
        body = {
            "feedback_id": feedback_id,
            "event_time": event_time,
            "kind": kind,
            "label": label,
            "value": value,
            "facts": _rows(facts),
            "note": note,
        }
        return self._log("feedback", prediction_id, body)

    def _log(self, noun: str, prediction_id: str, body: dict[str, Any]) -> bool:
        try:
            datum = self._encode(noun, prediction_id, body)
        except InvalidEvent as error:
            if self._strict:
                raise
            return self._drop("invalid", f"{noun}: {error}")
        header = self._headers.get(noun)
        if header is not None:
            return self._produce(noun, prediction_id, header + datum)
        if noun in self._refused:
            return self._drop("schema refused", noun)
        with self._lock:
            if noun not in self._headers:
                if len(self._held) >= self._hold_max:
                    return self._drop("queue full", "the schema registry does not answer")
                self._held.append((noun, prediction_id, datum))
                return True
        return self._produce(noun, prediction_id, self._headers[noun] + datum)

    def _encode(self, noun: str, prediction_id: str, body: dict[str, Any]) -> bytes:
        if noun not in self._parsed:
            raise InvalidEvent("the client has no contract")
        if not isinstance(prediction_id, str) or not prediction_id:
            raise InvalidEvent("the prediction id must be a text that is not empty")
        moment = body["event_time"]
        body["event_time"] = _microseconds(time.time_ns() // 1000 if moment is None else moment)
        if body.get("truth_due") is not None:
            body["truth_due"] = _microseconds(body["truth_due"])
        record = {"prediction_id": prediction_id, "model": self.model, **body}
        if noun == "feedback" and record["feedback_id"] is None:
            content = [
                record[name] for name in ("prediction_id", "event_time", "kind", "label", "value", "facts", "note")
            ]
            text = json.dumps(content, default=str)
            record["feedback_id"] = hashlib.sha256(text.encode()).hexdigest()[:32]
        out = io.BytesIO()
        try:
            try:
                fastavro.schemaless_writer(out, self._parsed[noun], record)
            except Exception:  # numpy's scalars are not Python's: once more with plain values
                out = io.BytesIO()
                fastavro.schemaless_writer(out, self._parsed[noun], _plain(record))
        except Exception as error:  # fastavro raises anything, from ValueError to struct.error
            raise InvalidEvent(self._explain(noun, record, error)) from error
        return out.getvalue()

    def _explain(self, noun: str, record: dict[str, Any], error: Exception) -> str:
        if noun == "inputs" and isinstance(record["features"], Mapping):
            for field in self._schemas["inputs"]["fields"][-1]["type"]["fields"]:
                value = _plain(record["features"]).get(field["name"])
                if not fastavro.validate(value, field["type"], raise_errors=False) and "default" not in field:
                    return f"the feature {field['name']!r} of type {type(value).__name__} is not {field['type']}"
        return f"{type(error).__name__}: {str(error)[:200]}"

    def _produce(self, noun: str, prediction_id: str, value: bytes) -> bool:
        (self._producer or self._new_producer()).poll(0)
        with self._lock:  # what the producer holds and what was counted belong together
            producer = self._unstuck()
            try:
                producer.produce(TOPICS[noun], value, prediction_id)
            except BufferError:
                return self._drop("queue full", "the brokers do not keep up or do not answer")
            except KafkaException as error:
                if error.args[0].fatal():
                    self._replace(producer, "has lost its place")
                too_large = error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
                return self._drop("too large" if too_large else "refused", f"{noun}, {len(value)} bytes")
            self._count(self._counts, noun)
        return True

    def _unstuck(self) -> Producer:
        """The producer; another one in the place of one that is stuck."""
        producer = self._new_producer()
        waiting = len(producer)
        if self._patience.is_over(sum(self._counts[noun] for noun in TOPICS) - waiting, waiting):
            self._replace(producer, "was stuck")
        return self._new_producer()

    def _replace(self, producer: Producer, why: str) -> None:
        self._producer, waiting = None, len(producer)
        with self._count_lock:
            self._dropped["not delivered"] += waiting
        log.error("%d events of %s are lost: the producer %s, and is replaced", waiting, self.model, why)
        abandon(producer)

    def _new_producer(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer({**self._settings, "on_delivery": self._on_failure})
            return self._producer

    def _on_failure(self, error: Any, message: Any) -> None:
        if error is not None and error.code() not in PURGED:
            self._drop("not delivered", str(error))

    def _on_error(self, error: Any) -> None:
        self._note("broker error", str(error))

    def _retry_later(self) -> None:
        """Go on asking a registry that is away, in a thread; until it answers events wait."""
        self._retrying = True
        threading.Thread(target=self._retry, name="flywheel-registry", daemon=True).start()

    def _retry(self) -> None:
        while self._retrying:
            with suppress(SchemaRefused):  # logged, and counted with every event of it
                if self._try_resolve():
                    self._retrying = False
                    return
            time.sleep(REGISTRY_RETRY_S)

    def _try_resolve(self) -> bool:
        """Get the schema ids that are not known yet; whether all are (or are refused)."""
        for noun, schema in self._schemas.items():
            if noun in self._headers or noun in self._refused:
                continue
            subject = f"{TOPICS[noun]}-{self.model if noun == 'inputs' else 'value'}"
            try:
                schema_id = register(self._registry, subject, schema)
            except SchemaRefused as error:
                log.error("the registry refuses the schema of %s: %s", subject, error)
                self._refused.add(noun)
                if self._strict:
                    raise
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                self._note("registry error", f"{type(error).__name__}: {error}")
                return False
            else:
                self._release(noun, struct.pack(">BI", 0, schema_id))
        self._release_refused()
        return True

    def _release(self, noun: str, header: bytes) -> None:
        """The id is known: what waited for it goes to the producer, before anything newer does."""
        self._new_producer()
        with self._lock:
            ready = [row for row in self._held if row[0] == noun]
            self._held = deque(row for row in self._held if row[0] != noun)
            for _, prediction_id, datum in ready:
                self._produce(noun, prediction_id, header + datum)
            self._headers[noun] = header

    def _release_refused(self) -> None:
        with self._lock:
            refused = [row for row in self._held if row[0] in self._refused]
            self._held = deque(row for row in self._held if row[0] not in self._refused)
        for noun, _, _ in refused:
            self._drop("schema refused", noun)

    def _count(self, counts: Counter[str], name: str) -> int:
        with self._count_lock:  # adding is not atomic
            counts[name] += 1
            return counts[name]

    def _drop(self, reason: str, detail: str) -> bool:
        self._tell(self._count(self._dropped, reason), "event dropped (%s): %s", reason, detail)
        return False

    def _note(self, reason: str, detail: str) -> None:
        self._tell(self._count(self._counts, reason), "%s: %s", reason, detail)

    def _tell(self, count: int, text: str, *arguments: str) -> None:
        """Log the first few, then one in ten thousand: a broken service must not flood its own log."""
        if count <= LOGGED_FIRST or count % 10_000 == 0:
            log.warning(text, *arguments)

    def stats(self) -> dict[str, Any]:
        """Events by what became of them since this process began to log.

        Returns
        -------
        ``queued`` by noun, ``waiting`` (queued and not yet acknowledged), ``dropped`` by reason, and ``noted`` (unknown
        features, broker and registry errors).
        """
        producer = self._producer
        if producer is not None:
            producer.poll(0)
        waiting = (len(producer) if producer is not None else 0) + len(self._held)
        with self._count_lock:
            counts, dropped = dict(self._counts), dict(self._dropped)
        queued = {noun: counts.pop(noun, 0) for noun in TOPICS}
        return {"queued": queued, "waiting": waiting, "dropped": dropped, "noted": counts}

    def flush(self, timeout: float = EXIT_FLUSH_S) -> int:
        """Wait until all is acknowledged; returns how many events still wait after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self._held and self._retrying and time.monotonic() < deadline:
            time.sleep(0.02)
        producer = self._producer
        left = 0 if producer is None else producer.flush(max(0.0, deadline - time.monotonic()))
        return int(left) + len(self._held)

    def close(self, timeout: float = EXIT_FLUSH_S) -> None:
        """Flush, tell of what is lost, and stop."""
        left = self.flush(timeout)
        self._retrying = False
        if left:
            log.error("%d events of %s were not delivered before the end", left, self.model)
        _clients.discard(self)

    def __enter__(self) -> FlywheelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _document(contract: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if contract is None or isinstance(contract, Mapping):
        return contract
    document: Mapping[str, Any] = json.loads(Path(contract).read_text(encoding="utf-8"))
    return document


def _microseconds(moment: datetime | int) -> int:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidEvent("a time without a zone; use datetime.now(timezone.utc)")
        delta = moment - EPOCH
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    try:
        number = moment.__index__()
    except AttributeError:
        raise InvalidEvent(f"a time of type {type(moment).__name__}; use an aware datetime") from None
    if number < EVENT_TIME_MIN_US:
        raise InvalidEvent(f"the time {number} is not microseconds since 1970")
    return number


def _rows(facts: Mapping[str, float] | None) -> Any:
    """Facts as Avro has them; what is no mapping is left for Avro to refuse."""
    if not isinstance(facts, Mapping):
        return [] if facts is None else facts
    return [{"name": name, "value": number} for name, number in facts.items() if number is not None]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return value.item() if hasattr(value, "item") else value


# ---------------------------------------------------------------------- registries


def register(registry: str | Path, subject: str, schema: Mapping[str, Any]) -> int:
    """The id of a schema under a subject, registered when it is new.

    Raises
    ------
    SchemaRefused
        If the registry holds it to be incompatible with the subject's newest version.
    OSError
        If the registry does not answer.
    """
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    place = str(registry)
    if place.startswith(("http://", "https://")):
        return _register_http(place, subject, text)
    return _register_file(Path(registry), subject, text)


def _register_http(url: str, subject: str, text: str) -> int:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
    address = f"{base}/subjects/{urllib.parse.quote(subject, safe='')}/versions"
    body = json.dumps({"schema": text}).encode()
    request = urllib.request.Request(address, body, method="POST")  # noqa: S310 - register() lets only http(s) through
    request.add_header("Content-Type", "application/vnd.schemaregistry.v1+json")
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=REGISTRY_TIMEOUT_S) as answer:  # noqa: S310
            return int(json.load(answer)["id"])
    except urllib.error.HTTPError as error:
        if error.code in (409, 422):
            raise SchemaRefused(error.read(2000).decode(errors="replace")) from error
        raise


def _register_file(path: Path, subject: str, text: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(Path(f"{path}.lock")):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            state = {"schemas": [], "subjects": {}}
        ids = state["subjects"].setdefault(subject, [])
        for known in ids:
            if state["schemas"][known - 1] == text:
                return int(known)
        if ids:
            problem = _first_incompatibility(json.loads(text), json.loads(state["schemas"][ids[-1] - 1]))
            if problem:
                raise SchemaRefused(problem)
        if text not in state["schemas"]:
            state["schemas"].append(text)
        ids.append(state["schemas"].index(text) + 1)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(path)
        return int(ids[-1])


def _first_incompatibility(new: Any, released: Any, place: str = "") -> str | None:
    """Why readers of the new schema could not read the released one; stricter than Avro, which allows promotions."""
    if isinstance(new, dict) and isinstance(released, dict) and new.get("type") == released.get("type") == "record":
        old = {field["name"]: field for field in released["fields"]}
        for field in new["fields"]:
            here = f"{place}/{field['name']}"
            if field["name"] in old:
                problem = _first_incompatibility(field["type"], old[field["name"]]["type"], here)
                if problem:
                    return problem
            elif "default" not in field:
                return f"{here} is new and has no default"
        return None
    if isinstance(new, list) and released in new:
        return None
    return None if new == released else f"{place} was {json.dumps(released)} and is {json.dumps(new)}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock that Flywheel's own file registry takes; where there is no flock, the atomic replacement must do."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------- exit and fork

_clients: set[FlywheelClient] = set()
"""Open ones; a client that nobody holds any more still has events to deliver."""


@atexit.register
def _close_all() -> None:
    for client in list(_clients):
        with suppress(Exception):
            client.close()


def _after_fork() -> None:
    """The child of a fork has no producer threads: it starts anew, and never ends what belongs to the parent."""
    for client in list(_clients):
        if client._producer is not None:  # noqa: SLF001 - this module's own class
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(client._producer))  # noqa: SLF001 - its end would wait for ever
        client._start()  # noqa: SLF001
        if len(client._headers) + len(client._refused) < len(client._schemas):  # noqa: SLF001
            client._retry_later()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
