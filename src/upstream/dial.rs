//! Opening one upstream WebSocket.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{
    Fetcher, Refusal, Stream, Upgrade,
    pool::{Member, Permit, Pool},
};
use crate::{
    config::{BreakerRules, Endpoint, Upstream, UpstreamAuth},
    error::{Code, Error},
    net,
    telemetry::metrics::{Metrics, Outcome},
    wire::{
        Incoming, Role, Socket, SocketOptions,
        handshake::{self, ClientRequest, HandshakeError},
    },
};

/// Probes of an upstream that says nothing. Turns have a limit of their own; an opaque
/// session may listen for hours to one whose machine is gone.
const KEEPALIVE: Duration = Duration::from_secs(45);

/// Why there is no connection. The texts name no credential and no payload.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The upstream answered the upgrade with something else than 101.
    #[error("the upstream refused the upgrade with status {}", .0.status)]
    Refused(Box<Refusal>),
    /// No connection, or no valid answer.
    #[error("the upstream could not be reached: {0}")]
    Unavailable(String),
    /// No answer in time.
    #[error("the upstream did not answer within {0:?}")]
    Timeout(Duration),
    /// The breakers of all endpoints are open; one may be dialled again after `retry`.
    #[error("every endpoint of upstream {upstream:?} is failing; retry")]
    GivenUp { upstream: String, retry: Duration },
}

impl DialError {
    /// What a client is told of it, where the upstream itself said nothing.
    #[must_use]
    pub fn told(&self) -> Error {
        match self {
            Self::Refused(_) => Refusal::unspoken(),
            Self::Unavailable(_) => {
                Error::new(Code::UpstreamUnavailable, "the upstream could not be reached")
            }
            Self::Timeout(_) => {
                let text = "the upstream did not answer the upgrade in time";
                Error::new(Code::UpstreamTimeout, text)
            }
            Self::GivenUp { retry, .. } => {
                Error::new(Code::UpstreamUnavailable, self.to_string()).after(*retry)
            }
        }
    }

    /// Whether it speaks against the endpoint rather than the request. A refusal of the
    /// operator's own credential, or of how much is asked with it, does too.
    fn is_endpoints(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Refused(refusal) => endpoint.is_blamed_for(refusal.status),
            Self::Unavailable(_) | Self::Timeout(_) => true,
            Self::GivenUp { .. } => false,
        }
    }
}

/// Bytes of what an upstream says after our Close that are read: more than is on the way. One
/// that goes on does not listen, and a node that closes many such has other things to do.
const LAST_WORDS: usize = 8 * 1024 * 1024;

/// What a control frame counts for.
const CONTROL: usize = 64;

/// An upgraded upstream connection.
pub struct Connection {
    pub socket: Socket<Stream>,
    /// End-to-end headers of the 101.
    pub headers: HeaderMap,
    pub subprotocol: Option<String>,
    pub since: Instant,
    /// Where it leads.
    pub member: Member,
}

impl Connection {
    /// Says the last word, or answers the upstream's, and waits until the upstream hangs up, as
    /// a client should (RFC 6455 section 7.1.1): hanging up at once could destroy the Close on
    /// its way. At most for `limit`, and for [`LAST_WORDS`] of what it still says. Cancel-safe:
    /// dropped, it hangs up.
    pub async fn close(mut self, code: u16, reason: &str, limit: Duration) {
        self.socket.queue_close(code, reason);
        let goodbye = async {
            if self.socket.flush().await.is_err() {
                return;
            }
            let mut left = LAST_WORDS;
            while left > 0
                && let Some(Ok(said)) = self.socket.recv().await
            {
                let bytes = match said {
                    Incoming::Messages(batch) => batch.weight(),
                    Incoming::Ping(_) | Incoming::Pong(_) | Incoming::Close(_) => CONTROL,
                };
                left = left.saturating_sub(bytes);
            }
        };
        drop(timeout(limit, goodbye).await);
    }
}

/// Opens connections; holds what all of them share.
#[derive(Clone)]
pub struct Dialer(Arc<Shared>);

struct Shared {
    /// TLS settings by trust file; the key None is the machine's own trust store.
    tls: HashMap<Option<PathBuf>, Arc<ClientConfig>>,
    timeout: Duration,
    max_message_bytes: usize,
    /// By the upstream's name.
    pools: HashMap<String, Arc<Pool>>,
    metrics: Metrics,
}

impl Dialer {
    /// A dialer to these upstreams. Loads the trust anchors of those that have TLS.
    ///
    /// # Errors
    /// A trust file that cannot be read.
    pub fn new<'a>(
        upstreams: impl IntoIterator<Item = &'a Arc<Upstream>>,
        timeout: Duration,
        max_message_bytes: usize,
        rules: BreakerRules,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let (mut tls, mut pools) = (HashMap::new(), HashMap::new());
        for upstream in upstreams {
            let secure = upstream.endpoints.iter().any(|endpoint| is_tls(&endpoint.url));
            if secure && !tls.contains_key(&upstream.ca_file) {
                let config = client_config(upstream.ca_file.as_ref())?;
                tls.insert(upstream.ca_file.clone(), Arc::new(config));
            }
            pools
                .entry(upstream.name.clone())
                .or_insert_with(|| Pool::new(upstream, rules, metrics.clone()));
        }
        Ok(Self(Arc::new(Shared { tls, timeout, max_message_bytes, pools, metrics })))
    }

    /// The endpoint to dial for `key`, as [`Pool::choose`] has it.
    pub(super) fn permit(
        &self,
        upstream: &Upstream,
        key: &[u8],
        avoid: Option<&str>,
        tried: &[usize],
        now: Instant,
    ) -> Result<Permit, DialError> {
        let pool = self.0.pools.get(&upstream.name);
        let pool = pool.ok_or_else(|| DialError::Unavailable("it is not configured".into()))?;
        pool.choose(key, avoid, tried, now).map_err(|until| {
            let retry = until.map_or(Duration::ZERO, |until| until - now);
            DialError::GivenUp { upstream: upstream.name.clone(), retry }
        })
    }

    /// Limit of a whole dial.
    pub(super) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// TLS settings for an upstream's trust file, for its HTTP paths.
    pub(super) fn tls(&self, upstream: &Upstream) -> Option<Arc<ClientConfig>> {
        self.0.tls.get(&upstream.ca_file).cloned()
    }

    /// Reads documents, trusting what the machine trusts.
    ///
    /// # Errors
    /// No TLS settings can be made.
    pub fn fetcher(&self) -> anyhow::Result<Fetcher> {
        let shared = self.0.tls.get(&None).map(Fetcher::new);
        shared.map_or_else(Fetcher::with_native_roots, Ok)
    }

    /// Connects and upgrades: to the endpoint that `key` (a session) has, and if that fails to
    /// the next one, all within one timeout. `avoid` is dialled only if there is no other.
    /// Cancel-safe: a dropped call leaves no connection behind.
    pub async fn dial(
        &self,
        upstream: &Upstream,
        key: &[u8],
        avoid: Option<&str>,
        upgrade: &Upgrade,
    ) -> Result<Connection, DialError> {
        let deadline = Instant::now() + self.0.timeout;
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            let now = Instant::now();
            // Another one may be allowed by now: without time it would be blamed for nothing.
            if now >= deadline
                && let Some(error) = last
            {
                return Err(error);
            }
            let permit = match self.permit(upstream, key, avoid, &tried, now) {
                Ok(permit) => permit,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let member = permit.member().clone();
            tried.push(member.at());
            // One that hangs must leave time for another.
            let left = deadline - now;
            let limit = if member.has_other_than(&tried, now) { left / 2 } else { left };
            let error = match self.attempt(upstream, permit, key, upgrade, limit).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if !error.is_endpoints(member.endpoint()) {
                return Err(error);
            }
            tracing::debug!(upstream = upstream.name, endpoint = member.name(), %error, "dial failed");
            last = Some(error);
        }
    }

    async fn attempt(
        &self,
        upstream: &Upstream,
        permit: Permit,
        key: &[u8],
        upgrade: &Upgrade,
        limit: Duration,
    ) -> Result<Connection, DialError> {
        let dialled = timeout(limit, self.connect(upstream, permit.member(), upgrade))
            .await
            .unwrap_or(Err(DialError::Timeout(limit)));
        let outcome = match &dialled {
            Ok(_) => Outcome::Ok,
            Err(DialError::Timeout(_)) => Outcome::Timeout,
            Err(error) if error.is_endpoints(permit.endpoint()) => Outcome::Failed,
            // A client's own credential, say: no fault of ours or of the upstream's.
            Err(_) => Outcome::Refused,
        };
        self.0.metrics.upstream_dial(&upstream.name, outcome);
        match &dialled {
            Err(error) if error.is_endpoints(permit.endpoint()) => {
                let answered = matches!(error, DialError::Refused(_));
                permit.failed(answered.then_some(key));
            }
            _ => permit.reached(),
        }
        dialled
    }

    async fn connect(
        &self,
        upstream: &Upstream,
        member: &Member,
        upgrade: &Upgrade,
    ) -> Result<Connection, DialError> {
        let endpoint = member.endpoint();
        let stream = self.stream(upstream, &endpoint.url).await?;
        let authority = endpoint.url.authority().map_or("", http::uri::Authority::as_str);
        let headers = request_headers(endpoint, &upgrade.headers);
        let request = ClientRequest {
            host: authority,
            path_and_query: &target_path(&endpoint.url, &upgrade.path_and_query),
            headers: &headers,
            subprotocols: &upgrade.subprotocols,
            offer_deflate: upstream.compression,
        };
        let connected = handshake::connect(stream, request, handshake::MAX_HEAD_BYTES)
            .await
            .map_err(|error| match error {
                HandshakeError::Refused { status, headers, body } => {
                    let headers = handshake::forwardable_response_headers(&headers);
                    DialError::Refused(Box::new(Refusal { status: status.as_u16(), headers, body }))
                }
                HandshakeError::Io(error) => unavailable(&error),
                HandshakeError::Invalid(what) => DialError::Unavailable(what.to_owned()),
            })?;
        let options = SocketOptions {
            max_message_bytes: self.0.max_message_bytes,
            deflate: connected.head.deflate,
        };
        Ok(Connection {
            socket: Socket::new(connected.io, Role::Client, options, connected.leftover),
            headers: handshake::forwardable_response_headers(&connected.head.headers),
            subprotocol: connected.head.subprotocol,
            since: Instant::now(),
            member: member.clone(),
        })
    }

    async fn stream(&self, upstream: &Upstream, url: &Uri) -> Result<Stream, DialError> {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let secure = is_tls(url);
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = net::connect(host, port).await.map_err(|error| unavailable(&error))?;
        net::tune(&tcp, KEEPALIVE);
        if !secure {
            return Ok(Stream::Plain(tcp));
        }
        let config = self
            .tls(upstream)
            .ok_or_else(|| DialError::Unavailable("no TLS settings were loaded for it".into()))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| DialError::Unavailable("its host is not a valid TLS name".into()))?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

fn unavailable(error: &io::Error) -> DialError {
    DialError::Unavailable(error.to_string())
}

/// Whether a URL's scheme asks for TLS.
pub(super) fn is_tls(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("wss" | "https"))
}

/// The client's end-to-end headers, with the operator's credential where there is one.
pub(super) fn request_headers(endpoint: &Endpoint, client: &HeaderMap) -> HeaderMap {
    let mut headers = client.clone();
    if let UpstreamAuth::Bearer(secret) = &endpoint.auth {
        headers.remove(AUTHORIZATION);
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", secret.expose())) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
    headers
}

/// Where on the upstream a client's request goes: to the upstream's own path if it has one
/// (the client's query is kept), else to the client's path.
pub(super) fn target_path(url: &Uri, client: &str) -> String {
    let (path, query) = match client.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (client, None),
    };
    let base = if url.path().is_empty() || url.path() == "/" { path } else { url.path() };
    match (url.query(), query.filter(|query| !query.is_empty())) {
        (None, None) => base.to_owned(),
        (Some(query), None) | (None, Some(query)) => format!("{base}?{query}"),
        (Some(own), Some(query)) => format!("{base}?{own}&{query}"),
    }
}

pub(super) fn client_config(ca_file: Option<&PathBuf>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // A machine without a trust store is no fault while the operator names an authority.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let anchors = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("upstream trust file {}", path.display()))?;
        roots.add_parsable_certificates(anchors);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_with_a_path_keeps_it_and_one_without_takes_the_clients() {
        let cases = [
            ("ws://up", "/rooms/a?x=1", "/rooms/a?x=1"),
            ("ws://up/", "/rooms/a", "/rooms/a"),
            ("ws://up/echo", "/rooms/a?x=1", "/echo?x=1"),
            ("ws://up/v1/realtime?model=m", "/rt?x=1", "/v1/realtime?model=m&x=1"),
            ("ws://up/v1/realtime?model=m", "/rt?", "/v1/realtime?model=m"),
        ];
        for (url, client, wanted) in cases {
            assert_eq!(target_path(&url.parse().unwrap(), client), wanted);
        }
    }

    #[test]
    fn the_operators_credential_replaces_the_clients() {
        let endpoint = Endpoint {
            auth: UpstreamAuth::Bearer(crate::config::Secret::new("operator")),
            ..Endpoint::sole("ws://up".parse().unwrap())
        };
        let mut client = HeaderMap::new();
        client.insert(AUTHORIZATION, HeaderValue::from_static("Bearer client"));
        assert_eq!(request_headers(&endpoint, &client)[AUTHORIZATION], "Bearer operator");
    }

    #[tokio::test]
    async fn an_endpoint_is_not_dialled_without_time_and_not_blamed_for_it() {
        /// Until an endpoint that failed once is dialled again, at most.
        const OPEN: Duration = Duration::from_millis(500);

        // Both accept, one after the other is tried; neither ever answers the upgrade.
        let silent = [
            std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        ];
        let endpoint = |at: usize| {
            let url = format!("ws://{}", silent[at].local_addr().unwrap());
            Endpoint { name: at.to_string(), ..Endpoint::sole(url.parse().unwrap()) }
        };
        let upstream = Arc::new(Upstream {
            name: "up".into(),
            endpoints: vec![endpoint(0), endpoint(1)],
            max_connection_age: Duration::MAX,
            compression: false,
            ca_file: None,
        });
        let rules = BreakerRules { failures: 1, open: OPEN, max_open: Duration::from_mins(1) };
        let limit = OPEN * 4;
        let metrics = Metrics::new();
        let dialer = Dialer::new([&upstream], limit, 1024, rules, metrics).unwrap();
        let permit = || dialer.permit(&upstream, b"key", None, &[], Instant::now());
        // One has just failed, so the other gets all of the time; then the first may be
        // dialled again.
        let failed = permit().unwrap();
        let first = failed.member().at();
        failed.failed(None);
        let upgrade = Upgrade { path_and_query: "/".into(), ..Upgrade::default() };
        let refused = dialer.dial(&upstream, b"key", None, &upgrade).await;
        assert!(matches!(refused, Err(DialError::Timeout(_))));
        assert_eq!(permit().ok().map(|permit| permit.member().at()), Some(first));
    }
}
