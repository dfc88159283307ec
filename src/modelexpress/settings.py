"""Every environment variable and its default, once.

A variable that is malformed never breaks a load: its documented default is used, with a warning that names the
variable, the value and the allowed form. Where the default would let in what somebody meant to keep out, the strictest
value is used instead. What other versions read, and this one has no use for, is accepted and named in a warning.
"""

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, ValidationError

from modelexpress.other_versions import WITHOUT_EFFECT, OtherVersions

logger = logging.getLogger(__name__)

MIB = 1 << 20

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]


_LEAST_ANSWER = 0.5

_MALFORMED = "malformed"
"""Key of what is known of a field: the value that stands for one that cannot be used, where it is not the default."""

_named: set[str] = set()
"""Variables without effect of which this process has spoken."""


def _is_one(value: object) -> object:
    """Count a flag only when it is `1`: engines' scripts set `0`, `false` and the empty string, and mean no."""
    return value == "1" if isinstance(value, str) else value


def _without_scheme(value: object) -> object:
    """Strip `http://` and `https://`, which fleets put before a registry's address."""
    if isinstance(value, str):
        return value.strip().removeprefix("http://").removeprefix("https://").rstrip("/")
    return value


def _word(value: object) -> object:
    """Let the case of a word and the space around it be what they are."""
    return value.strip().lower() if isinstance(value, str) else value


class Settings(OtherVersions):
    """What the environment says, typed and validated.

    Times are seconds, sizes are bytes. Read it with `Settings.read()`, which cannot fail.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    registry: Annotated[str, BeforeValidator(_without_scheme)] = Field(
        default="localhost:8001",
        validation_alias=AliasChoices("MODEL_EXPRESS_URL", "MX_SERVER_ADDRESS"),
        description="HOST:PORT of the registry; MODEL_EXPRESS_URL wins over MX_SERVER_ADDRESS.",
    )
    worker_host: str = Field(
        default="",
        validation_alias="MX_WORKER_HOST",
        description="The name under which other hosts reach this worker; empty: found out.",
    )
    worker_grpc_port: Port = Field(
        default=6555,
        validation_alias="MX_WORKER_GRPC_PORT",
        description="Port of the worker server of device 0; each further device adds one; 0: any free port.",
    )
    heartbeat_interval: Seconds = Field(
        default=30.0,
        validation_alias="MX_HEARTBEAT_INTERVAL_SECS",
        description="How often a source says that it is alive.",
    )
    heartbeat_timeout: Seconds = Field(
        default=90.0,
        validation_alias="MX_HEARTBEAT_TIMEOUT_SECS",
        description="A source unheard for so long is no longer listed.",
    )
    reaper_interval: Seconds = Field(
        default=30.0,
        validation_alias="MX_REAPER_SCAN_INTERVAL_SECS",
        description="How often the registry looks for dead sources.",
    )
    gc_timeout: Seconds = Field(
        default=3600.0,
        validation_alias="MX_GC_TIMEOUT_SECS",
        description="A stale record unheard for so long is deleted.",
    )
    transfer_timeout: Seconds = Field(
        default=900.0,
        validation_alias="MX_TRANSFER_TIMEOUT",
        description="The longest a transfer from one source may take.",
    )
    stall_timeout: Seconds = Field(
        default=10.0,
        validation_alias="MX_STALL_TIMEOUT",
        description="A transfer that moves nothing for so long has lost its source.",
    )
    source_query_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=5.0,
        validation_alias="MX_SOURCE_QUERY_TIMEOUT",
        description="How long to wait for an answer from the registry before loading without it; a TensorRT-LLM worker "
        "waits so long for a source as well, and with 0 asks once.",
    )
    metadata_backend: str = Field(
        default="sqlite",
        validation_alias="MX_METADATA_BACKEND",
        description="Store of the registry when --store is not given: memory, sqlite, sqlite:PATH or redis.",
    )
    redis_url: str = Field(
        default="redis://localhost:6379",
        validation_alias="REDIS_URL",
        description="Where the store `redis` lives.",
    )
    auth_token_path: str = Field(
        default="",
        validation_alias="MX_AUTH_TOKEN_PATH",
        description="File with the fleet's bearer token: clients send it, worker servers ask for it; empty: neither.",
    )
    tls_ca: str = Field(
        default="",
        validation_alias="MX_TLS_CA",
        description="PEM file of authorities; set: clients speak TLS to a registry whose certificate they signed, and "
        "targets check sources that encrypt.",
    )
    tls_cert: str = Field(
        default="",
        validation_alias="MX_TLS_CERT",
        description="PEM file with the certificate that clients show to a registry that asks for one, and that a "
        "source encrypts tcp with: it must name MX_WORKER_HOST, or the address that stands for it.",
    )
    tls_key: str = Field(
        default="",
        validation_alias="MX_TLS_KEY",
        description="PEM file with the private key of MX_TLS_CERT.",
    )
    reader_limit: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        validation_alias="MX_READER_LIMIT",
        description="Readers that a source serves at once; others read from these. 1: a chain, more: a tree.",
    )
    uplink_limit: Annotated[int, Field(ge=0)] = Field(
        default=0,
        validation_alias="MX_UPLINK_LIMIT",
        description="Bytes a second that a worker asks its readers to keep to together while it serves: they hold back "
        "themselves, those of other makes do not; 0: no limit.",
    )
    model_revision: str = Field(
        default="",
        validation_alias="MX_MODEL_REVISION",
        description="Revision that identities carry when the caller names none.",
    )
    transport: Literal["auto", "local", "nixl", "tcp"] = Field(
        default="auto",
        validation_alias="MX_TRANSPORT",
        description="The only transport to use; auto: the fastest that works.",
    )
    transport_first: Literal["", "local", "nixl", "tcp"] = Field(
        default="",
        validation_alias="MX_TRANSPORT_FIRST",
        description="The transport to try before faster ones, which are used where it does not work; empty: none.",
    )
    tcp_streams: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, validation_alias="MX_TCP_STREAMS", description="Connections of one tcp transfer."
    )
    chunk_bytes: Annotated[int, Field(ge=64 << 10, le=4 << 30)] = Field(
        default=64 * MIB,
        validation_alias="MX_CHUNK_BYTES",
        description="Bytes that travel, and are checked, together.",
    )
    p2p_metadata: bool = Field(
        default=True,
        validation_alias="MX_P2P_METADATA",
        description="Whether sources are published and asked for at all; 0: everything is loaded without peers.",
    )
    artifact_transfer: bool = Field(
        default=False,
        validation_alias="MX_ARTIFACT_TRANSFER",
        description="1: caches of compiled kernels are offered to peers, and brought from them before engines start.",
    )
    artifact_chunk_bytes: Annotated[int, Field(ge=64 << 10, le=4 << 30)] = Field(
        default=64 * MIB,
        validation_alias="MX_ARTIFACT_TRANSFER_CHUNK_SIZE",
        description="Bytes of a cached file that have a checksum of their own.",
    )
    artifact_ready_url: str = Field(
        default="",
        validation_alias="MX_ARTIFACT_READY_URL",
        description="http or https URL that answers 200 when the engine is ready: its weights are listed then, and its "
        "caches sealed. With another scheme, or empty, weights are listed once they are loaded, and caches are not.",
    )
    artifact_ready_timeout: Seconds = Field(
        default=1800.0,
        validation_alias="MX_ARTIFACT_READY_TIMEOUT_SECS",
        description="An engine that is not ready after so long offers nothing.",
    )
    artifact_compile_config_digest: str = Field(
        default="",
        validation_alias="MX_ARTIFACT_COMPILE_CONFIG_DIGEST",
        description="Any word for what decides compiled code beyond model and versions; only equal words share caches.",
    )
    artifact_policy: Annotated[Literal["off", "warn", "require"], BeforeValidator(_word)] = Field(
        default="off",
        validation_alias="MX_ARTIFACT_POLICY",
        description="What to do with caches that no trusted key signed: off: install, warn: install and say so, "
        "require: refuse. Any other word counts as require.",
        json_schema_extra={_MALFORMED: "require"},
    )
    artifact_signing_key: str = Field(
        default="",
        validation_alias="MX_ARTIFACT_SIGNING_KEY",
        description="File with the private key that signs the caches offered here (mx keys new).",
    )
    artifact_trusted_keys: str = Field(
        default="",
        validation_alias="MX_ARTIFACT_TRUSTED_KEYS",
        description="File with the public keys whose signatures count, one a line (mx keys show).",
    )
    model_name: str = Field(
        default="",
        validation_alias="MODEL_NAME",
        description="Name under which TensorRT-LLM's weights are offered and asked for; empty: that of the checkpoint.",
    )
    express_source: Annotated[bool, BeforeValidator(_is_one)] = Field(
        default=False,
        validation_alias="MODEL_EXPRESS_SOURCE",
        description="1: a TensorRT-LLM worker loads natively and offers its weights, whoever else has them.",
    )
    express_target: Annotated[bool, BeforeValidator(_is_one)] = Field(
        default=False,
        validation_alias="MODEL_EXPRESS_TARGET",
        description="1: a TensorRT-LLM worker takes its weights from a peer or fails, and offers none; wins over "
        "MODEL_EXPRESS_SOURCE.",
    )
    transfer_log_dir: str = Field(
        default="",
        validation_alias="MX_TRANSFER_LOG_DIR",
        description="Folder for a log file of each TensorRT-LLM rank (rank0.log, ...), whose workers' output nobody "
        "sees; empty: none.",
    )
    trtllm_checkpoint_dir: str = Field(
        default="",
        validation_alias="CHECKPOINT_DIR",
        description="The checkpoint folder that `mx trtllm publish` serves when it is given none.",
    )
    trtllm_output_dir: str = Field(
        default="/tmp/mx_trtllm",
        validation_alias="OUTPUT_DIR",
        description="Where a TensorRT-LLM target puts `checkpoint` and `engine` when it is told no folder.",
    )
    trtllm_max_batch_size: Annotated[int, Field(ge=1)] = Field(
        default=8,
        validation_alias="TRTLLM_MAX_BATCH_SIZE",
        description="Requests in one batch of the engine that `trtllm-build` makes.",
    )
    trtllm_max_input_len: Annotated[int, Field(ge=1)] = Field(
        default=2048,
        validation_alias="TRTLLM_MAX_INPUT_LEN",
        description="Tokens of a prompt that this engine takes.",
    )
    trtllm_max_seq_len: Annotated[int, Field(ge=1)] = Field(
        default=4096,
        validation_alias="TRTLLM_MAX_SEQ_LEN",
        description="Tokens of a prompt and its answer together, for this engine.",
    )

    @property
    def answer_timeout(self) -> float:
        """Seconds that the registry has for one answer, also where nobody waits for a source."""
        return max(self.source_query_timeout, _LEAST_ANSWER)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Return the settings of an environment, with defaults, or what is stricter, in place of malformed values.

        Args:
            environ: The variables; the process environment when None.
        """
        given = _given(cls, os.environ if environ is None else environ)
        _name_ignored(given)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            for problem in error.errors():
                variable = str(problem["loc"][0])
                value, instead = given.pop(variable), _known_of(variable).get(_MALFORMED)
                logger.warning("%s=%r is not usable (%s); %s", variable, value, problem["msg"], used_instead(variable))
                if instead is not None:
                    given[variable] = str(instead)
            return cls.model_validate(given)

    def asking(self, registry: str | None) -> "Settings":
        """Return these settings with the registry that an engine's own configuration names, where it names one."""
        return self.model_copy(update={"registry": Settings(registry=registry).registry}) if registry else self


def variables() -> list[tuple[str, str, str]]:
    """Return (variable, default, description) of every setting, those without effect last."""
    every = [
        (variable, str(field.default), field.description or "")
        for field in Settings.model_fields.values()
        for variable in _aliases(field.validation_alias)
    ]
    return sorted(every, key=lambda each: not has_effect(each[0]))


def used_instead(variable: str) -> str:
    """Return what is used in place of a value of a variable that cannot be used, in words."""
    instead = _known_of(variable).get(_MALFORMED)
    if instead is not None:
        return f"{instead!r} is used, the strictest that there is"
    return f"using the default {Settings.model_fields[_field_of(Settings, variable)].default!r}"


def has_effect(variable: str) -> bool:
    """Return whether a variable that this package knows does anything."""
    return not _known_of(variable).get(WITHOUT_EFFECT)


def _name_ignored(given: Mapping[str, str]) -> None:
    """Say once a process which variables are set in vain."""
    if ignored := sorted(variable for variable in given if variable not in _named and not has_effect(variable)):
        _named.update(ignored)
        logger.warning("without effect in this version: %s; docs/reference-settings.md says why", ", ".join(ignored))


def _known_of(variable: str) -> Mapping[str, Any]:
    known = Settings.model_fields[_field_of(Settings, variable)].json_schema_extra
    return known if isinstance(known, dict) else {}


def _given(cls: type[Settings], environ: Mapping[str, str]) -> dict[str, str]:
    """Return, for each field, the first of its variables that is set, under that variable's name."""
    given = {}
    for field in cls.model_fields.values():
        for variable in _aliases(field.validation_alias):
            if environ.get(variable, "").strip():
                given[variable] = environ[variable]
                break
    return given


def _field_of(cls: type[Settings], variable: str) -> str:
    return next(n for n, f in cls.model_fields.items() if variable in _aliases(f.validation_alias))


def _aliases(alias: object) -> list[str]:
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias)]
