//! What other systems noticed: security event tokens (RFC 8417) of the Shared Signals Framework, pushed to us
//! (RFC 8935), become revocations.
//!
//! Two events of CAEP 1.0 count. `session-revoked` takes back what the workload of that subject may, and
//! `credential-change` with `revoke` or `delete` all entitlements to the credential of that subject. Ids are the bundle's
//! own. What one token takes back is one revocation: all of it, or nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use enforcer_bundle::Digest;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Error;
use super::json::read_json;
use super::ledger::{Ledger, Request};
use super::store::{Store, Table};
use crate::statement::Target;

/// Where transmitters push to.
pub const PATH: &str = "/ssf/events";
const SESSION_REVOKED: &str = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
const CREDENTIAL_CHANGE: &str =
    "https://schemas.openid.net/secevent/caep/event-type/credential-change";
/// An older token is refused; of younger ones it is known which have come.
const OLDEST: SignedDuration = SignedDuration::from_hours(24);
/// A transmitter's clock may be ahead by so much.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// Most bytes of a token.
const MAX_TOKEN: usize = 64 * 1024;
/// Signatures by keys that everybody may know; none by a shared secret.
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::EdDSA,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::RS256,
    Algorithm::PS256,
    Algorithm::RS512,
];

/// Whom to listen to.
#[derive(Clone, Debug)]
pub struct Transmitter {
    /// Its issuer identifier, as in `iss`.
    pub issuer: String,
    /// This receiver's, as in `aud`.
    pub audience: String,
    /// A file with its keys, a JSON Web Key Set.
    pub keys: PathBuf,
}

/// Knows a transmitter's tokens.
#[derive(Debug)]
pub struct Listener {
    transmitter: Transmitter,
    keys: JwkSet,
}

/// Takes what a transmitter pushes.
pub struct Receiver {
    listener: Listener,
    ledger: Arc<Ledger>,
    store: Arc<dyn Store>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iat: i64,
    jti: String,
    sub: Option<Value>,
    exp: Option<Value>,
    sub_id: Option<Value>,
    events: BTreeMap<String, Value>,
}

/// Why a token is not taken.
enum Problem {
    /// Something is wrong with it: an error in the words of RFC 8935, section 2.4, and what exactly.
    Token(&'static str, String),
    /// Something is wrong here: the transmitter is to send it again.
    Here(Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Self::Token(error, reason) => {
                tracing::warn!(error, reason, "a security event is refused");
                let body = json!({"err": error, "description": reason}).to_string();
                let kind = [(CONTENT_TYPE, "application/json")];
                (StatusCode::BAD_REQUEST, kind, body).into_response()
            }
            Self::Here(error) => {
                tracing::error!(
                    "a security event cannot be taken, and is to come again: {}",
                    error.chain()
                );
                StatusCode::SERVICE_UNAVAILABLE.into_response()
            }
        }
    }
}

impl Listener {
    /// To who has these keys.
    #[must_use]
    pub fn new(transmitter: Transmitter, keys: JwkSet) -> Self {
        Self { transmitter, keys }
    }

    /// What a token takes back, whenever it was issued, and whether or not it has come before.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn hear(&self, token: &str) -> Result<Vec<Target>, String> {
        let heard = || -> Result<Vec<Target>, Problem> {
            let claims = self.open_token(token)?;
            let targets = claims.targets()?.into_iter();
            Ok(targets.filter_map(|(_, target)| target).collect())
        };
        match heard() {
            Ok(targets) => Ok(targets),
            Err(Problem::Token(_, reason)) => Err(reason),
            Err(Problem::Here(error)) => Err(error.chain()),
        }
    }

    /// The claims of a token that is signed by the transmitter, for us.
    fn open_token(&self, token: &str) -> Result<Claims, Problem> {
        let invalid = |reason: String| Problem::Token("invalid_request", reason);
        let header = decode_header(token).map_err(|error| invalid(error.to_string()))?;
        if header.typ.as_deref() != Some("secevent+jwt") {
            return Err(invalid(format!(
                "got the type {:?}, expected \"secevent+jwt\"",
                header.typ.unwrap_or_default()
            )));
        }
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Problem::Token(
                "invalid_key",
                format!("got the algorithm {:?}", header.alg),
            ));
        }
        let key = header.kid.as_deref().and_then(|id| self.keys.find(id));
        let key = key.ok_or_else(|| Problem::Token("invalid_key", "no such key".to_owned()))?;
        let key = DecodingKey::from_jwk(key)
            .map_err(|error| Problem::Token("invalid_key", error.to_string()))?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&[&self.transmitter.audience]);
        validation.set_issuer(&[&self.transmitter.issuer]);
        validation.set_required_spec_claims(&["iss", "aud"]);
        validation.validate_exp = false;
        let opened = decode::<Claims>(token, &key, &validation).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind;
            let kind = match error.kind() {
                ErrorKind::InvalidIssuer => "invalid_issuer",
                ErrorKind::InvalidAudience => "invalid_audience",
                ErrorKind::InvalidSignature => "authentication_failed",
                _ => "invalid_request",
            };
            Problem::Token(kind, error.to_string())
        })?;
        let claims = opened.claims;
        if claims.sub.is_some() || claims.exp.is_some() {
            return Err(invalid(
                "a security event token has neither `sub` nor `exp`".to_owned(),
            ));
        }
        Ok(claims)
    }
}

impl Receiver {
    /// # Errors
    /// If the keys cannot be read.
    pub fn open(
        transmitter: Transmitter,
        ledger: Arc<Ledger>,
        store: Arc<dyn Store>,
    ) -> Result<Self, Error> {
        let keys: Option<JwkSet> = read_json(&transmitter.keys)?;
        let keys = keys.ok_or_else(|| Error::gone(&transmitter.keys))?;
        Ok(Self {
            listener: Listener::new(transmitter, keys),
            ledger,
            store,
        })
    }

    /// What to serve.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, post(receive))
            .layer(DefaultBodyLimit::max(MAX_TOKEN))
            .with_state(Arc::new(self))
    }

    /// When the token was issued, if that is not too long ago, and whether it has come before.
    async fn known(&self, claims: &Claims) -> Result<(Timestamp, bool), Problem> {
        let invalid = |reason: &str| Problem::Token("invalid_request", reason.to_owned());
        let issued =
            Timestamp::from_second(claims.iat).map_err(|_| invalid("`iat` is no moment"))?;
        let now = Timestamp::now();
        if issued < now - OLDEST || issued > now + AHEAD {
            return Err(invalid("`iat` is not within the last day"));
        }
        let known = self.store.get(Table::Signals, &name(claims)).await?;
        Ok((issued, known.is_some()))
    }

    /// From now on it has come. Only once it has been acted on: what fails is to come again.
    async fn note(&self, claims: &Claims, issued: Timestamp) -> Result<(), Problem> {
        let new = BTreeMap::from([(name(claims), json!(issued))]);
        self.store.put(Table::Signals, new).await?;
        let oldest = Timestamp::now() - OLDEST;
        for (name, issued) in self.store.all(Table::Signals).await? {
            let issued: Option<Timestamp> = serde_json::from_value(issued).ok();
            if issued.is_none_or(|issued| issued < oldest) {
                self.store.take(Table::Signals, &name).await?;
            }
        }
        Ok(())
    }

    /// Does what the token says.
    async fn take(&self, token: &str) -> Result<(), Problem> {
        let claims = self.listener.open_token(token)?;
        let issuer = &self.listener.transmitter.issuer;
        let audit = async |action: &str, what: Value| {
            let what = json!({"by": issuer, "jti": claims.jti, "what": what});
            if let Err(error) = self.ledger.audit(action, &what).await {
                tracing::error!("a signal cannot be noted: {}", error.chain());
            }
        };
        let (issued, known) = self.known(&claims).await?;
        if known {
            audit(
                "signal-replayed",
                json!(claims.events.keys().collect::<Vec<_>>()),
            )
            .await;
            return Ok(());
        }
        let (mut targets, mut reasons) = (Vec::new(), Vec::new());
        for (event, target) in claims.targets()? {
            let Some(target) = target else {
                audit("signal-ignored", json!(event)).await;
                continue;
            };
            // It may be about something that is not ours to know.
            if let Err(unknown) = self.ledger.knows(&target) {
                audit("signal-ignored", json!(unknown.chain())).await;
                continue;
            }
            let reason = claims.events[event]["reason_admin"]["en"].as_str();
            reasons.push(reason.unwrap_or(event));
            targets.push(target);
        }
        if !targets.is_empty() {
            let request = Request {
                by: issuer.clone(),
                reason: reasons.join("; "),
                ticket: Some(claims.jti.clone()),
            };
            self.ledger.revoke(&targets, &request).await?;
        }
        self.note(&claims, issued).await
    }
}

/// Of a token in the table of those that have come.
fn name(claims: &Claims) -> String {
    Digest::of_bytes(claims.jti.as_bytes()).0
}

impl Claims {
    /// What each of the events takes back, if anything. If one is not as it should be, none counts.
    fn targets(&self) -> Result<Vec<(&str, Option<Target>)>, Problem> {
        let events = self.events.iter();
        let targets =
            events.map(|(event, fields)| Ok((event.as_str(), self.target(event, fields)?)));
        targets.collect()
    }

    fn target(&self, event: &str, fields: &Value) -> Result<Option<Target>, Problem> {
        let subject = self.sub_id.as_ref().or(fields.get("subject"));
        let id = || {
            let subject = subject.unwrap_or(&Value::Null);
            let id = match subject["format"].as_str() {
                Some("opaque") => subject["id"].as_str(),
                Some("iss_sub") => subject["sub"].as_str(),
                Some("uri") => subject["uri"].as_str(),
                _ => None,
            };
            id.map(str::to_owned).ok_or_else(|| {
                Problem::Token(
                    "invalid_request",
                    "expected a subject of the format `opaque`, `iss_sub` or `uri`".to_owned(),
                )
            })
        };
        match event {
            SESSION_REVOKED => Ok(Some(Target::Workload(id()?))),
            CREDENTIAL_CHANGE => match fields["change_type"].as_str() {
                Some("revoke" | "delete") => Ok(Some(Target::Credential(id()?))),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    if kind != Some("application/secevent+jwt") {
        let expected = "expected the content type application/secevent+jwt";
        return Problem::Token("invalid_request", expected.to_owned()).into_response();
    }
    let taken = match std::str::from_utf8(&body) {
        Ok(token) => receiver.take(token.trim()).await,
        Err(error) => Err(Problem::Token("invalid_request", error.to_string())),
    };
    match taken {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(problem) => problem.into_response(),
    }
}
