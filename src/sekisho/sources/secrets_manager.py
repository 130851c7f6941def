"""AWS Secrets Manager: the calls that Sekisho makes, with its errors in our words. No text of AWS's is passed on."""

import logging
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.session import Session

from sekisho.errors import KeyRefused, KeySourceUnavailable

CURRENT: Final = "AWSCURRENT"
PENDING: Final = "AWSPENDING"
MAX_BYTES: Final = 65_536  # of a secret's value
CONNECT_S: Final = 2
READ_S: Final = 3

_NO_ANSWER: Final = (boto.HTTPClientError, boto.ConnectionError)
_NO_CREDENTIALS_NOW: Final = (boto.CredentialRetrievalError, boto.MetadataRetrievalError)
_THROTTLING: Final = re.compile(r".*Throttl.*|TooManyRequests.*|RequestLimitExceeded|SlowDown|PriorRequestNotComplete")
_BAD_CREDENTIALS: Final = re.compile(
    r"ExpiredToken.*|InvalidClientTokenId|UnrecognizedClient.*|.*Signature.*|RequestExpired|IncompleteSignature|"
    r"RequestTimeTooSkewed|MissingAuthenticationToken.*"
)


@dataclass(frozen=True)
class Version:
    """One version of the secret's value."""

    id: str
    document: bytes = field(repr=False)


class SecretsManager:
    """One secret. Credentials, and what is not given here, come by boto3's own chain; nothing is asked for before use.

    Each call raises ``KeySourceUnavailable`` if there is no answer, and ``KeyRefused`` if it is a refusal.
    """

    def __init__(
        self,
        secret_id: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        role_arn: str | None = None,
    ) -> None:
        self.secret_id = secret_id
        self._region = region
        self._endpoint_url = endpoint_url
        self._role_arn = role_arn
        self._session: Any = None
        self._clients: dict[int, Any] = {}
        # Its lines of that level hold the bodies of answers, and so the keys.
        logger = logging.getLogger("botocore")
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))

    @property
    def region(self) -> str | None:
        """The one that was given, or the one that an ARN names; None where boto3 is left to find it."""
        in_arn = self.secret_id.split(":")[3] if self.is_arn else None
        return self._region or in_arn

    @property
    def is_arn(self) -> bool:
        """Whether the secret is named by its ARN. A secret is made by name alone."""
        return self.secret_id.startswith("arn:")

    def read(self, version_id: str = "", *, attempts: int = 3) -> Version | None:
        """The current version, or that one; None if there is none, or no such secret."""
        which = {"VersionId": version_id} if version_id else {"VersionStage": CURRENT}
        answer = self._call("GetSecretValue", none_for="ResourceNotFoundException", attempts=attempts, **which)
        if answer is None:
            return None
        if not isinstance(answer.get("VersionId"), str):  # cut short, or from something else at this address
            raise KeySourceUnavailable("GetSecretValue: this is no answer of AWS")
        value = answer.get("SecretString", answer.get("SecretBinary"))
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")  # what is no UTF-8 then, the reader of the key set refuses
        if not isinstance(value, bytes):
            raise KeyRefused(f"the secret {self.secret_id} has no value")
        return Version(answer["VersionId"], value)

    def put(self, version_id: str, document: bytes, *, rotation_token: str | None = None) -> bool:
        """Adds a version that is pending; any other stops being so. False if there is no such secret."""
        by_function: dict[str, Any] = {} if rotation_token is None else {"RotationToken": rotation_token}
        answer = self._call(
            "PutSecretValue",
            none_for="ResourceNotFoundException",
            ClientRequestToken=version_id,
            SecretString=document.decode(),
            VersionStages=[PENDING],
            **by_function,
        )
        return answer is not None

    def create(self, version_id: str, document: bytes) -> None:
        """Makes the secret. Raises ``KeyRefused`` if it is there by now."""
        self._settle(
            "CreateSecret",
            version_id,
            none_for="ResourceExistsException",
            named_by="Name",
            ClientRequestToken=version_id,
            SecretString=document.decode(),
        )

    def make_current(self, version_id: str, *, instead_of: str | None) -> None:
        """Promotes a version, if ``instead_of`` (None: no version) is the current one. AWSPREVIOUS follows by itself.

        Raises ``KeyRefused`` if another version is current by now.
        """
        self._settle(
            "UpdateSecretVersionStage",
            version_id,
            none_for="InvalidParameterException",
            VersionStage=CURRENT,
            MoveToVersionId=version_id,
            **({} if instead_of is None else {"RemoveFromVersionId": instead_of}),
        )

    def drop_pending(self, version_id: str) -> None:
        """The version is no longer pending. A label that is left counts as a rotation that is still under way."""
        self._call(
            "UpdateSecretVersionStage",
            none_for="InvalidParameterException",
            VersionStage=PENDING,
            RemoveFromVersionId=version_id,
        )

    def describe(self) -> dict[str, Any]:
        """What is known of the secret, without its value. Raises ``KeyRefused`` if there is none."""
        return self._call("DescribeSecret") or {}

    def _settle(self, operation: str, version_id: str, **how: Any) -> None:
        """A call that makes a version current. If its answer is lost, what counts is which version is current then."""
        refusal: KeyRefused
        try:
            answer = self._call(operation, **how)
        except KeySourceUnavailable as error:
            answer, refusal = None, KeySourceUnavailable(error.detail)
        else:
            refusal = KeyRefused(f"the secret {self.secret_id} has changed meanwhile: read it again and repeat")
        if answer is None:
            current = self.read()
            if current is None or current.id != version_id:
                raise refusal

    def _call(
        self, operation: str, *, none_for: str = "", named_by: str = "SecretId", attempts: int = 3, **parameters: Any
    ) -> dict[str, Any] | None:
        """The answer; None if it is the error ``none_for``."""
        call = re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
        try:
            answer: dict[str, Any] = getattr(self._client(attempts), call)(**{named_by: self.secret_id}, **parameters)
        except boto.ClientError as error:
            if _code(error) == none_for:
                return None
            refusal = self._refused(error)
        except _NO_ANSWER as error:
            refusal = KeySourceUnavailable(f"Secrets Manager does not answer {operation} ({type(error).__name__})")
        except _NO_CREDENTIALS_NOW as error:
            refusal = KeySourceUnavailable(f"boto3 does not get its credentials ({type(error).__name__})")
        except boto.BotoCoreError as error:
            hint = ": set SEKISHO_AWS_REGION or AWS_DEFAULT_REGION" if isinstance(error, boto.NoRegionError) else ""
            refusal = KeyRefused(f"boto3 cannot ask for the secret {self.secret_id} ({type(error).__name__}){hint}")
        except KeyRefused:
            raise
        except Exception as error:  # noqa: BLE001 - botocore trips over an answer of the wrong shape in many ways
            refusal = KeySourceUnavailable(f"{operation}: this is no answer of AWS ({type(error).__name__})")
        else:
            return answer
        finally:
            if attempts == 1 and 1 in self._clients:
                # A connection kept until the next look may be closed by AWS just when it is used again.
                self._clients[1].close()
        raise refusal  # outside of except: boto3's error in its context holds the request, and so the keys

    def _refused(self, error: boto.ClientError) -> KeyRefused:
        code, operation = _code(error), error.operation_name
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = str(error.response.get("Error", {}).get("Message", ""))
        asked = f"{operation} of {self.secret_id}"
        if _THROTTLING.fullmatch(code) or status == 429 or status >= 500:
            return KeySourceUnavailable(f"Secrets Manager does not do {asked} now ({code})")
        if "KMS" in message or "KMS" in code or code in {"DecryptionFailure", "EncryptionFailure"}:
            return KeyRefused(f"{asked}: the KMS key of the secret cannot be used ({code})")
        if code.startswith("AccessDenied"):
            return KeyRefused(f"{asked} is not permitted ({code}): docs/keys.md lists the permissions")
        if _BAD_CREDENTIALS.fullmatch(code):
            return KeyRefused(f"AWS does not accept the credentials that boto3 found ({code})")
        if "marked for deletion" in message or "marked deleted" in message:
            return KeyRefused(
                f"the secret {self.secret_id} is marked for deletion: aws secretsmanager restore-secret brings it back"
            )
        where = f" in {self.region}" if self.region else ""
        return KeyRefused(f"{asked} is refused{where} ({code})")

    def _client(self, attempts: int) -> Any:
        if attempts not in self._clients:
            if self.is_arn and self.region != self.secret_id.split(":")[3]:
                raise KeyRefused(f"the secret {self.secret_id} is not in {self.region}, which SEKISHO_AWS_REGION names")
            if self._session is None:
                self._session = _session(self.region, self._role_arn)
            self._clients[attempts] = self._session.client(
                "secretsmanager", endpoint_url=self._endpoint_url, config=_config(attempts)
            )
        return self._clients[attempts]


class _AssumedRole:
    """A link of botocore's chain of credentials: those of the role, fetched when they are used and before they end."""

    METHOD = CANONICAL_NAME = "sekisho-role"

    def __init__(self, role_arn: str, region: str | None) -> None:
        self._role_arn = role_arn
        self._region = region

    def load(self) -> Any:
        """Called once, by botocore."""
        source = Session()
        if source.get_credentials() is None:
            raise boto.NoCredentialsError
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(source.create_client, region_name=self._region, config=_config(attempts=1)),
            source_credentials=source.get_credentials(),
            role_arn=self._role_arn,
            extra_args={"RoleSessionName": "sekisho"},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)


def _session(region: str | None, role_arn: str | None) -> Any:
    session = Session()
    if role_arn is not None:
        chain = session.get_component("credential_provider")
        chain.insert_before("env", _AssumedRole(role_arn, region))
    return boto3.Session(botocore_session=session, region_name=region)


def _config(attempts: int) -> Config:
    return Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )


def _code(error: boto.ClientError) -> str:
    """AWS's word for the error, if it is one: what stands there may come from anything at that address."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"[A-Za-z0-9.]{1,80}", code, re.ASCII) else "unknown error"
