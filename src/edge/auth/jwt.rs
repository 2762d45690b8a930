//! Signed tokens (RFC 7519): judged by the issuer's published keys, algorithms pinned.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header, get_current_timestamp,
    jwk::{AlgorithmParameters, JwkSet, PublicKeyUse},
};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Jwks, Jwt},
    error::{Code, Error, Result},
    upstream::{Fetcher, read_text},
};

/// Longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 16 * 1024;

/// Largest set of keys that is read, in bytes, and how many keys of it are kept.
const JWKS_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 64;

/// Between two reads of a URL, and of a file, which costs nobody anything.
const REFRESH_URL: Duration = Duration::from_mins(5);
const REFRESH_FILE: Duration = Duration::from_secs(5);

/// Least time between two reads, so that made-up key ids do not become load of the issuer.
const PACE: Duration = Duration::from_secs(10);

/// After a read that failed.
const RETRY: Duration = Duration::from_secs(10);

/// How long a read may take, and a request waits for one.
const READ: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(3);

/// What a token proved.
#[derive(Debug)]
pub(super) struct Proven {
    /// Value of the claim that names the principal.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// When it stops being proof.
    pub(super) until: Instant,
    /// Cancelled when its key is published no more.
    pub(super) revoked: CancellationToken,
}

/// One published key, with the algorithm that it is for, if that is said.
pub(super) struct Published {
    /// Empty for none. Two keys may share one: the later is meant by it, both are published.
    name: String,
    key: DecodingKey,
    algorithm: Option<Algorithm>,
    /// What makes it the same key in the next set.
    material: AlgorithmParameters,
    /// One for all tokens of the key, by whatever name, however many sockets they opened.
    revoked: CancellationToken,
}

/// In the order of their set; at most [`KEYS_MAX`].
pub(super) type KeySet = Vec<Published>;

/// Judges tokens.
pub(super) struct Tokens {
    rules: Jwt,
    algorithms: Vec<Algorithm>,
    fetcher: Fetcher,
    /// None until they were read once.
    keys: RwLock<Option<Vec<Arc<Published>>>>,
    wanted: Notify,
    reads: watch::Sender<u64>,
    last_read: Mutex<Option<StdInstant>>,
}

impl Tokens {
    pub(super) fn new(rules: Jwt, fetcher: Fetcher) -> Arc<Self> {
        let algorithms = rules.algorithms.iter().filter_map(|name| name.parse().ok()).collect();
        Arc::new(Self {
            rules,
            algorithms,
            fetcher,
            keys: RwLock::new(None),
            wanted: Notify::new(),
            reads: watch::Sender::new(0),
            last_read: Mutex::new(None),
        })
    }

    /// Judges a token. Waits at most three seconds, for keys that were not read yet.
    ///
    /// # Errors
    /// `not_authorized` with the reason and nothing of the token; `session_unavailable` while
    /// the issuer's keys cannot be read.
    pub(super) async fn prove(&self, token: &str) -> Result<Proven> {
        let refuse = |reason: &str| Error::new(Code::NotAuthorized, reason.to_owned());
        if token.len() > TOKEN_MAX {
            return Err(refuse("the token is too long"));
        }
        let header = decode_header(token).map_err(|_| refuse("the token is no signed JWT"))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(refuse("the token's algorithm is not accepted"));
        }
        let published = self.published(header.kid.as_deref()).await?;
        if published.algorithm.is_some_and(|algorithm| algorithm != header.alg) {
            return Err(refuse("the token's algorithm is not its key's"));
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = self.rules.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&self.rules.audience]);
        let mut required = vec!["exp", "aud"];
        if let Some(issuer) = &self.rules.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let claims = decode::<Map<String, Value>>(token, &published.key, &validation)
            .map_err(|error| refuse(reason(error.kind())))?
            .claims;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let subject = text(&self.rules.principal_claim)
            .filter(|subject| !subject.is_empty())
            .ok_or_else(|| refuse("the token does not name its principal"))?;
        let end = claims.get("exp").and_then(seconds).unwrap_or_default();
        let left = Duration::from_secs(end.saturating_sub(get_current_timestamp())).min(LONGEST);
        Ok(Proven {
            subject: subject.to_owned(),
            issuer: text("iss").unwrap_or_default().to_owned(),
            until: Instant::now() + left + self.rules.leeway,
            revoked: published.revoked.clone(),
        })
    }

    /// The key that a token names; of a token that names none, the only one there is.
    async fn published(&self, kid: Option<&str>) -> Result<Arc<Published>> {
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        // Issuers publish a key before they sign with it, so one read decides.
        let mut reads = self.reads.subscribe();
        let fresh = self.last_read.lock().is_some_and(|at| at.elapsed() < PACE);
        if !fresh {
            self.wanted.notify_one();
            drop(timeout(WAIT, reads.changed()).await);
        }
        if self.keys.read().is_none() {
            let text = "the token issuer's keys cannot be read at the moment; retry";
            return Err(Error::new(Code::SessionUnavailable, text));
        }
        self.known(kid).ok_or_else(|| {
            Error::new(Code::NotAuthorized, "the token's key is not one that its issuer publishes")
        })
    }

    fn known(&self, kid: Option<&str>) -> Option<Arc<Published>> {
        let keys = self.keys.read();
        let last = keys.as_ref()?.last()?;
        let kid = match kid {
            Some(kid) => kid,
            None if keys.iter().flatten().all(|key| key.name == last.name) => &last.name,
            None => return None,
        };
        keys.iter().flatten().rfind(|key| key.name == kid).cloned()
    }

    /// Keeps the keys up to date until `stop`.
    pub(super) async fn refresh(self: Arc<Self>, stop: CancellationToken) {
        let usual = match self.rules.jwks {
            Jwks::Url(_) => REFRESH_URL,
            Jwks::File(_) => REFRESH_FILE,
        };
        let run = async {
            loop {
                let pause = match self.read().await {
                    Ok(keys) => {
                        self.replace(keys);
                        usual
                    }
                    Err(reason) => {
                        tracing::error!(%reason, "the token issuer's keys cannot be read; the keys from before stay");
                        RETRY.min(usual)
                    }
                };
                *self.last_read.lock() = Some(StdInstant::now());
                self.reads.send_modify(|reads| *reads += 1);
                // Nodes that started together do not ask together for ever.
                let pause = pause.mul_f64(rand::random_range(0.8..1.2));
                tokio::select! {
                    () = sleep(pause) => {}
                    () = self.wanted.notified() => {}
                }
            }
        };
        stop.run_until_cancelled(run).await;
    }

    /// Takes a set that was read in the place of the one before, and ends the tokens of keys
    /// that are not in it any more. Its material makes a key the same, by whatever name.
    fn replace(&self, mut next: KeySet) {
        let mut keys = self.keys.write();
        for old in keys.iter().flatten() {
            let mut stays = false;
            for new in next.iter_mut().filter(|new| new.material == old.material) {
                new.revoked = old.revoked.clone();
                stays = true;
            }
            if !stays {
                tracing::info!(kid = old.name, "the token issuer publishes this key no more");
                old.revoked.cancel();
            }
        }
        *keys = Some(next.into_iter().map(Arc::new).collect());
    }

    async fn read(&self) -> Result<KeySet, String> {
        let text = match &self.rules.jwks {
            Jwks::Url(url) => self.fetcher.get(url, JWKS_MAX, READ).await,
            Jwks::File(path) => read_text(path.clone(), JWKS_MAX, READ).await,
        }?;
        self.keys_of(&text)
    }

    /// The useful keys of a JWK set.
    pub(super) fn keys_of(&self, text: &[u8]) -> Result<KeySet, String> {
        parse(text, &self.algorithms)
    }

    /// Takes a JWK set as if it had been read.
    #[cfg(any(test, fuzzing))]
    pub(super) fn learn(&self, text: &[u8]) -> Result<(), String> {
        let keys = self.keys_of(text)?;
        self.replace(keys);
        *self.last_read.lock() = Some(StdInstant::now());
        Ok(())
    }
}

/// Longest time that a token is believed.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// A `NumericDate` (RFC 7519), which may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    let fraction = || Duration::try_from_secs_f64(value.as_f64()?).ok().map(|end| end.as_secs());
    value.as_u64().or_else(fraction)
}

/// Keys of a set that can verify one of `algorithms`.
fn parse(text: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, String> {
    let set: JwkSet = serde_json::from_slice(text)
        .map_err(|error| format!("not a JWK set (line {})", error.line()))?;
    let mut keys = KeySet::new();
    for jwk in set.keys.iter().take(KEYS_MAX) {
        let signs =
            jwk.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
        let algorithm = jwk.common.key_algorithm.map(|name| name.to_string().parse().ok());
        // A key for an algorithm that is not accepted, or not for signatures at all.
        let useful = signs
            && algorithm
                .is_none_or(|a: Option<Algorithm>| a.is_some_and(|a| algorithms.contains(&a)));
        let Some(key) = DecodingKey::from_jwk(jwk).ok().filter(|_| useful) else { continue };
        if !algorithms.iter().any(|algorithm| algorithm.family() == key.family()) {
            continue;
        }
        let name = jwk.common.key_id.clone().unwrap_or_default();
        let (algorithm, material) = (algorithm.flatten(), jwk.algorithm.clone());
        let twin = keys.iter().find(|key| key.material == material);
        let revoked = twin.map_or_else(CancellationToken::new, |key| key.revoked.clone());
        keys.push(Published { name, key, algorithm, material, revoked });
    }
    if keys.is_empty() { Err("no key of an accepted algorithm in it".into()) } else { Ok(keys) }
}

fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks a claim: exp, aud or iss",
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        _ => "the token is not valid",
    }
}
