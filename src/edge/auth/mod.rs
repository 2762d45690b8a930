//! Who a client is. The credential is read here and goes nowhere else but to the upstream.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod jwt;
mod keys;
#[cfg(test)]
mod tests;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use hmac::{Hmac, Mac};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, ORIGIN},
};
use sha2::Sha256;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{jwt::Tokens, keys::Keys};
use super::UNAUTHORIZED;
use crate::{
    config::Auth,
    error::{Code, Error, Result},
    ids::Principal,
    upstream::Fetcher,
};

/// Codex names the account beside the token; one token may act for several.
const ACCOUNT: HeaderName = HeaderName::from_static("chatgpt-account-id");

/// Where else upstreams read an API key.
const OTHERS: [&str; 2] = ["api-key", "x-api-key"];

/// How long a turn that runs may outlive its client's credential.
pub(super) const GRACE: Duration = Duration::from_mins(1);

/// Tells principals apart. The key of the hash is the cluster's own: without it nobody can test
/// guesses of a credential. Whoever reads the database has it (`ring_meta.secret`).
pub struct Authenticator {
    mode: Mode,
    origins: Vec<String>,
    secret: [u8; 32],
}

enum Mode {
    None,
    Passthrough,
    Keys(Arc<Keys>),
    Tokens(Arc<Tokens>),
}

/// A client that was let in.
pub struct Identity {
    pub principal: Principal,
    standing: Standing,
}

/// How long a credential is good.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// As long as the connection: the upstream judges it, or nobody does.
    Open,
    Unless(CancellationToken),
    /// The same, and no longer than this.
    Until(Instant, CancellationToken),
}

impl Identity {
    /// Resolves when the credential is good no more; None if that is not ours to say.
    pub(super) fn ended(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        match &self.standing {
            Standing::Open => None,
            Standing::Unless(revoked) => Some(Box::pin(revoked.clone().cancelled_owned())),
            Standing::Until(end, revoked) => {
                Some(Box::pin(timeout_at(*end, revoked.clone().cancelled_owned()).map(drop)))
            }
        }
    }

    /// Whether it is good still, to be asked before something begins that was waited for.
    ///
    /// # Errors
    /// `not_authorized` when it is not.
    pub(super) fn stands(&self) -> Result<()> {
        let over = match &self.standing {
            Standing::Open => false,
            Standing::Unless(revoked) => revoked.is_cancelled(),
            Standing::Until(end, revoked) => revoked.is_cancelled() || *end <= Instant::now(),
        };
        if over { Err(Error::new(Code::NotAuthorized, UNAUTHORIZED)) } else { Ok(()) }
    }

    /// Resolves when what runs has to end too: [`GRACE`] after the credential.
    pub(super) fn grace_over(&self) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.ended();
        async move {
            match ended {
                Some(ended) => ended.await,
                None => pending().await,
            }
            sleep(GRACE).await;
        }
    }
}

impl Authenticator {
    /// `origins`: web pages that may connect; empty for all.
    #[must_use]
    pub fn new(auth: Auth, origins: Vec<String>, secret: [u8; 32], fetcher: Fetcher) -> Self {
        let mode = match auth {
            Auth::None => Mode::None,
            Auth::Passthrough => Mode::Passthrough,
            Auth::ApiKey(keys) => Mode::Keys(Keys::new(keys)),
            Auth::Jwt(rules) => Mode::Tokens(Tokens::new(rules, fetcher)),
        };
        Self { mode, origins, secret }
    }

    /// Follows what changes while the node runs: files of keys, an issuer's keys.
    pub fn follow(&self, tracker: &TaskTracker, stop: &CancellationToken) {
        match &self.mode {
            Mode::None | Mode::Passthrough => {}
            Mode::Keys(keys) => drop(tracker.spawn(Arc::clone(keys).watch(stop.clone()))),
            Mode::Tokens(tokens) => {
                drop(tracker.spawn(Arc::clone(tokens).refresh(stop.clone())));
            }
        }
    }

    /// Looks at files of keys now, and not when it is time again.
    #[cfg(test)]
    pub(super) fn look(&self) {
        if let Mode::Keys(keys) = &self.mode {
            keys.look();
        }
    }

    /// Who sent a request. The headers are not kept while it waits.
    ///
    /// # Errors
    /// `forbidden` for a page of a foreign origin; `not_authorized` where a credential is
    /// asked for and none that is good was shown; `session_unavailable` while it cannot be
    /// judged.
    pub fn identify<'a>(
        &'a self,
        headers: &HeaderMap,
    ) -> impl Future<Output = Result<Identity>> + Send + use<'a> {
        let judged = if self.is_foreign(headers) {
            let text = "pages of this origin may not connect (allowed-origins)";
            Err(Error::new(Code::Forbidden, text))
        } else {
            self.judge(headers)
        };
        async move {
            match judged? {
                Judged::In(identity) => Ok(identity),
                Judged::Token(tokens, token) => {
                    let proven = tokens.prove(&token).await?;
                    let parts = [b"token", proven.issuer.as_bytes(), proven.subject.as_bytes()];
                    let standing = Standing::Until(proven.until, proven.revoked);
                    Ok(self.identity(&parts, standing))
                }
            }
        }
    }

    /// As far as it goes without waiting.
    fn judge(&self, headers: &HeaderMap) -> Result<Judged> {
        let identity = match &self.mode {
            Mode::None => self.identity(&[b"nobody"], Standing::Open),
            Mode::Passthrough => {
                let bytes = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
                let mut parts = vec![&b"credential"[..], bytes(AUTHORIZATION), bytes(ACCOUNT)];
                // Added only where they are, so that all others stay who they were.
                for name in OTHERS {
                    for value in headers.get_all(name) {
                        parts.extend([name.as_bytes(), value.as_bytes()]);
                    }
                }
                self.identity(&parts, Standing::Open)
            }
            Mode::Keys(keys) => {
                let shown = bearer(headers, "an API key is needed: Authorization: Bearer …")?;
                let key = keys
                    .find(shown)
                    .ok_or_else(|| Error::new(Code::NotAuthorized, "this API key is not known"))?;
                let standing = Standing::Unless(key.revoked.clone());
                self.identity(&[b"key", key.name().as_bytes()], standing)
            }
            Mode::Tokens(tokens) => {
                let shown = bearer(headers, "a token is needed: Authorization: Bearer …")?;
                let token = str::from_utf8(shown)
                    .map_err(|_| Error::new(Code::NotAuthorized, "the token is no signed JWT"))?;
                return Ok(Judged::Token(Arc::clone(tokens), token.to_owned()));
            }
        };
        Ok(Judged::In(identity))
    }

    /// Browsers name the page that connects; nobody else has to.
    fn is_foreign(&self, headers: &HeaderMap) -> bool {
        let known = |origin: &HeaderValue| {
            self.origins
                .iter()
                .any(|known| origin.as_bytes().eq_ignore_ascii_case(known.as_bytes()))
        };
        !self.origins.is_empty() && !headers.get_all(ORIGIN).iter().all(known)
    }

    /// Whether the client's `Authorization` is ours and must not reach the upstream.
    #[must_use]
    pub fn consumes_credential(&self) -> bool {
        matches!(self.mode, Mode::Keys(_) | Mode::Tokens(_))
    }

    fn identity(&self, parts: &[&[u8]], standing: Standing) -> Identity {
        let mut principal = [0; 16];
        // HMAC takes keys of every length.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.secret) {
            for part in parts {
                mac.update(&(part.len() as u64).to_be_bytes());
                mac.update(part);
            }
            principal.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        }
        Identity { principal: Principal(principal), standing }
    }
}

enum Judged {
    In(Identity),
    Token(Arc<Tokens>, String),
}

/// What a client shows as its bearer credential (RFC 6750); the scheme's name has no case.
fn bearer<'a>(headers: &'a HeaderMap, needed: &'static str) -> Result<&'a [u8]> {
    headers
        .get(AUTHORIZATION)
        .and_then(|value| {
            let (scheme, credential) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(credential)
        })
        .ok_or_else(|| Error::new(Code::NotAuthorized, needed))
}
