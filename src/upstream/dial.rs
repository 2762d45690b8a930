//! Opening one upstream WebSocket.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{Fetcher, Refusal, Stream, Upgrade};
use crate::{
    config::{Upstream, UpstreamAuth},
    wire::{
        Role, Socket, SocketOptions,
        handshake::{self, ClientRequest, HandshakeError},
    },
};

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
}

/// An upgraded upstream connection.
pub struct Connection {
    pub socket: Socket<Stream>,
    /// End-to-end headers of the 101.
    pub headers: HeaderMap,
    pub subprotocol: Option<String>,
    pub since: Instant,
}

impl Connection {
    /// Says the last word, or answers the upstream's, and waits until the upstream hangs up, as
    /// a client should (RFC 6455 section 7.1.1): hanging up at once could destroy the Close on
    /// its way. At most for `limit`. Cancel-safe: dropped, it hangs up.
    pub async fn close(mut self, code: u16, reason: &str, limit: Duration) {
        self.socket.queue_close(code, reason);
        let goodbye = async {
            if self.socket.flush().await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        drop(timeout(limit, goodbye).await);
    }
}

/// Opens connections; holds what all of them share.
#[derive(Clone)]
pub struct Dialer {
    /// TLS settings by trust file; the key None is the machine's own trust store.
    tls: Arc<HashMap<Option<PathBuf>, Arc<ClientConfig>>>,
    timeout: Duration,
    max_message_bytes: usize,
}

impl Dialer {
    /// Loads the trust anchors of every `wss` upstream.
    ///
    /// # Errors
    /// A trust file that cannot be read.
    pub fn new<'a>(
        upstreams: impl Iterator<Item = &'a Upstream>,
        timeout: Duration,
        max_message_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut tls = HashMap::new();
        for upstream in upstreams.filter(|upstream| is_tls(&upstream.url)) {
            if !tls.contains_key(&upstream.ca_file) {
                let config = client_config(upstream.ca_file.as_ref())?;
                tls.insert(upstream.ca_file.clone(), Arc::new(config));
            }
        }
        Ok(Self { tls: Arc::new(tls), timeout, max_message_bytes })
    }

    /// TLS settings for an upstream's trust file, for its HTTP paths.
    pub(super) fn tls(&self, upstream: &Upstream) -> Option<Arc<ClientConfig>> {
        self.tls.get(&upstream.ca_file).cloned()
    }

    /// Reads documents, trusting what the machine trusts.
    ///
    /// # Errors
    /// No TLS settings can be made.
    pub fn fetcher(&self) -> anyhow::Result<Fetcher> {
        let shared = self.tls.get(&None).cloned();
        let tls = shared.map_or_else(|| client_config(None).map(Arc::new), Ok)?;
        Ok(Fetcher::new(&tls))
    }

    /// Connects and upgrades. Cancel-safe: a dropped call leaves no connection behind.
    pub async fn dial(
        &self,
        upstream: &Upstream,
        upgrade: &Upgrade,
    ) -> Result<Connection, DialError> {
        timeout(self.timeout, self.connect(upstream, upgrade))
            .await
            .unwrap_or(Err(DialError::Timeout(self.timeout)))
    }

    async fn connect(
        &self,
        upstream: &Upstream,
        upgrade: &Upgrade,
    ) -> Result<Connection, DialError> {
        let stream = self.stream(upstream).await?;
        let authority = upstream.url.authority().map_or("", http::uri::Authority::as_str);
        let headers = request_headers(upstream, &upgrade.headers);
        let request = ClientRequest {
            host: authority,
            path_and_query: &target_path(&upstream.url, &upgrade.path_and_query),
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
            max_message_bytes: self.max_message_bytes,
            deflate: connected.head.deflate,
        };
        Ok(Connection {
            socket: Socket::new(connected.io, Role::Client, options, connected.leftover),
            headers: handshake::forwardable_response_headers(&connected.head.headers),
            subprotocol: connected.head.subprotocol,
            since: Instant::now(),
        })
    }

    async fn stream(&self, upstream: &Upstream) -> Result<Stream, DialError> {
        let host = upstream.url.host().unwrap_or_default().trim_matches(['[', ']']);
        let secure = is_tls(&upstream.url);
        let port = upstream.url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await.map_err(|error| unavailable(&error))?;
        tcp.set_nodelay(true).map_err(|error| unavailable(&error))?;
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
pub(super) fn request_headers(upstream: &Upstream, client: &HeaderMap) -> HeaderMap {
    let mut headers = client.clone();
    if let UpstreamAuth::Bearer(secret) = &upstream.auth {
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

fn client_config(ca_file: Option<&PathBuf>) -> anyhow::Result<ClientConfig> {
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
        let upstream = Upstream {
            name: "u".into(),
            url: "ws://up".parse().unwrap(),
            auth: UpstreamAuth::Bearer(crate::config::Secret::new("operator")),
            max_connection_age: Duration::from_secs(1),
            compression: false,
            ca_file: None,
        };
        let mut client = HeaderMap::new();
        client.insert(AUTHORIZATION, HeaderValue::from_static("Bearer client"));
        assert_eq!(request_headers(&upstream, &client)[AUTHORIZATION], "Bearer operator");
    }
}
