//! Plain HTTP towards an upstream: the paths that carry no session.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST, uri::Scheme};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::{Instant, timeout};

use super::{
    Dialer,
    dial::{is_tls, request_headers},
};
use crate::{
    config::{Endpoint, Upstream},
    wire::handshake,
};

/// A streamed request body; its error is the client's connection failing.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

type Pool = Client<HttpsConnector<HttpConnector>, Body>;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the upstream did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the upstream could not be reached: {0}")]
    Unavailable(String),
    /// The breakers of all endpoints are open; one may be asked again after this.
    #[error("every endpoint of the upstream is failing")]
    GivenUp(Duration),
}

/// Pooled connections to all upstreams.
pub struct HttpClient {
    pools: HashMap<String, Pool>,
    dialer: Dialer,
    timeout: Duration,
}

impl HttpClient {
    /// One pool for each upstream. `timeout` bounds the wait for an answer's head.
    pub fn new(upstreams: &[Arc<Upstream>], dialer: &Dialer, timeout: Duration) -> Self {
        let pools = upstreams.iter().map(|upstream| {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(timeout));
            let connector = match dialer.tls(upstream) {
                Some(config) => HttpsConnectorBuilder::new().with_tls_config((*config).clone()),
                None => HttpsConnectorBuilder::new().with_webpki_roots(),
            };
            let connector = connector.https_or_http().enable_http1().wrap_connector(tcp);
            let pool = Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .pool_max_idle_per_host(8)
                .build(connector);
            (upstream.name.clone(), pool)
        });
        Self { pools: pools.collect(), dialer: dialer.clone(), timeout }
    }

    /// Sends a client's request on, to the same path of the endpoint that `key` has.
    pub async fn forward(
        &self,
        upstream: &Upstream,
        key: &[u8],
        request: Request<Body>,
    ) -> Result<Response<Incoming>, HttpError> {
        let pool = self
            .pools
            .get(&upstream.name)
            .ok_or_else(|| HttpError::Unavailable("it is not configured".into()))?;
        let now = Instant::now();
        // Its body is a stream, so it is sent once: there is no second endpoint to try.
        let permit = self.dialer.pool(upstream).choose(key, None, &[], now).map_err(|until| {
            HttpError::GivenUp(until.map_or(Duration::ZERO, |until| until - now))
        })?;
        let endpoint = upstream
            .endpoints
            .get(permit.member().at())
            .ok_or_else(|| HttpError::Unavailable("it is not configured".into()))?;
        let outgoing = outgoing(endpoint, request)?;
        let answered = timeout(self.timeout, pool.request(outgoing)).await;
        // Beyond the connection a client's own request may be to blame.
        match answered {
            Ok(Ok(response)) => {
                permit.reached();
                Ok(response)
            }
            Ok(Err(error)) => {
                if error.is_connect() {
                    permit.failed(None);
                }
                Err(HttpError::Unavailable(error.to_string()))
            }
            Err(_) => Err(HttpError::Timeout(self.timeout)),
        }
    }
}

fn outgoing(endpoint: &Endpoint, request: Request<Body>) -> Result<Request<Body>, HttpError> {
    let (parts, body) = request.into_parts();
    let client = handshake::forwardable_request_headers(&parts.headers);
    let mut headers = request_headers(endpoint, &client);
    let authority = endpoint.url.authority().map_or("", http::uri::Authority::as_str);
    if let Ok(host) = HeaderValue::from_str(authority) {
        headers.insert(HOST, host);
    }
    let uri = Uri::builder()
        .scheme(if is_tls(&endpoint.url) { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(authority)
        .path_and_query(parts.uri.path_and_query().map_or("/", |path| path.as_str()))
        .build()
        .map_err(|error| HttpError::Unavailable(error.to_string()))?;
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = uri;
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}
