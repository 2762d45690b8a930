//! A small client of the admin listener, for the command line.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::view::{
    DrainAnswer, DrainOrder, Health, RingInfo, SessionInfo, SessionPage, SessionQuery,
};
use crate::config::Secret;

/// Upper bound of one exchange. The listener answers from memory or with one query.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of an answer: a full page of sessions is below 1 MiB.
const MAX_BODY: usize = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0} is not the address of an admin listener (expected http://host:port)")]
    BadUrl(String),
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{0} did not answer in time")]
    Timeout(String),
    /// It answered with an error of ours.
    #[error("{message} ({code})")]
    Refused { status: u16, code: String, message: String },
    #[error("{0} answered with something else than ringspan does")]
    BadAnswer(String),
}

/// Talks to one node. Every call is bounded in time and safe to drop.
#[derive(Clone, Debug)]
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    /// Shown with what changes something.
    token: Option<Secret>,
}

impl Client {
    /// A client of the admin listener at `base`: `http://host:port` or `host:port`.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`].
    pub fn new(base: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl(base.to_owned());
        let full = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let uri: Uri = full.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(bad());
        }
        let http = Http::builder(TokioExecutor::new()).build_http();
        Ok(Self { http, base: full.trim_end_matches('/').to_owned(), token: None })
    }

    /// The same client with a token for what changes something.
    #[must_use]
    pub fn with_token(self, token: Option<Secret>) -> Self {
        Self { token, ..self }
    }

    /// How the node is, ready or not.
    ///
    /// # Errors
    /// No answer, or not one of ringspan's.
    pub async fn health(&self) -> Result<Health, ClientError> {
        let (_, body) = self.exchange(Method::GET, "/health/ready", Bytes::new()).await?;
        self.read(&body)
    }

    /// The ring as the node sees it.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn ring(&self) -> Result<RingInfo, ClientError> {
        self.json(Method::GET, "/api/v1/ring").await
    }

    /// One page of sessions.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, ClientError> {
        let mut path = "/api/v1/sessions?".to_owned();
        let limit = query.limit.map(|limit| limit.to_string());
        for (name, value) in [
            ("owner", &query.owner),
            ("key", &query.key),
            ("after", &query.after),
            ("limit", &limit),
        ] {
            if let Some(value) = value {
                path.push_str(name);
                path.push('=');
                percent_encode(value, &mut path);
                path.push('&');
            }
        }
        path.pop();
        self.json(Method::GET, &path).await
    }

    /// One session.
    ///
    /// # Errors
    /// No answer, or a refusal; `not_found` if there is none.
    pub async fn session(&self, id: &str) -> Result<SessionInfo, ClientError> {
        let mut path = "/api/v1/sessions/".to_owned();
        percent_encode(id, &mut path);
        self.json(Method::GET, &path).await
    }

    /// Asks the node to drain.
    ///
    /// # Errors
    /// No answer, or not one of ringspan's.
    pub async fn drain(&self, order: DrainOrder) -> Result<DrainAnswer, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            drain: DrainAnswer,
        }
        let body = serde_json::to_vec(&order).unwrap_or_default().into();
        let (status, body) = self.exchange(Method::POST, "/api/v1/drain", body).await?;
        // A refusal to drain is an answer too, and carries the same body.
        if status.is_success() || status == StatusCode::CONFLICT {
            return self.read::<Answer>(&body).map(|answer| answer.drain);
        }
        Err(self.refusal(status, &body))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let (status, body) = self.exchange(method, path, Bytes::new()).await?;
        if status.is_success() { self.read(&body) } else { Err(self.refusal(status, &body)) }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|_| ClientError::BadAnswer(self.base.clone()))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        #[derive(Deserialize)]
        struct Answer {
            error: Told,
        }
        #[derive(Deserialize)]
        struct Told {
            code: String,
            message: String,
        }
        match self.read::<Answer>(body) {
            Ok(Answer { error: Told { code, message } }) => {
                ClientError::Refused { status: status.as_u16(), code, message }
            }
            Err(bad) => bad,
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable =
            |reason: String| ClientError::Unreachable { url: self.base.clone(), reason };
        let mut request = Request::builder().uri(format!("{}{path}", self.base));
        if let Some(token) = self.token.as_ref().filter(|_| method != Method::GET) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request
            .method(method)
            .body(Full::new(body))
            .map_err(|_| ClientError::BadUrl(self.base.clone()))?;
        let exchange = async {
            let answer =
                self.http.request(request).await.map_err(|error| unreachable(root(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
            let body = body.map_err(|error| unreachable(root(&*error)))?;
            Ok((status, body.to_bytes()))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout(self.base.clone())),
        }
    }
}

/// The innermost cause: "connection refused" says more than "client error".
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// RFC 3986: all but unreserved characters.
fn percent_encode(text: &str, to: &mut String) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            let _ = write!(to, "%{byte:02X}");
        }
    }
}
