//! Plain HTTP towards an upstream: the paths that carry no session.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST, uri::Scheme};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, capture_connection},
    },
    rt::TokioExecutor,
};
use tokio::time::{Instant, timeout};

use super::{
    DialError, Dialer,
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
    /// No endpoint may be dialled.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Pooled connections to all upstreams.
pub struct HttpClient {
    pools: HashMap<String, Pool>,
    dialer: Dialer,
    timeout: Duration,
}

impl HttpClient {
    /// One pool for each upstream. `timeout` bounds the wait for an answer's head; connecting
    /// has the time of a dial.
    pub fn new(upstreams: &[Arc<Upstream>], dialer: &Dialer, timeout: Duration) -> Self {
        let pools = upstreams.iter().map(|upstream| {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(dialer.timeout()));
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
        // Its body is a stream, so it is sent once: there is no second endpoint to try.
        let mut permit = self.dialer.permit(upstream, key, None, &[], Instant::now())?;
        let mut outgoing = outgoing(permit.endpoint(), request)?;
        let connection = capture_connection(&mut outgoing);
        let mut answer = std::pin::pin!(pool.request(outgoing));
        let dialled = timeout(self.dialer.timeout(), &mut answer).await;
        let answered = match dialled {
            Ok(answered) => answered,
            Err(_) if connection.connection_metadata().is_none() => {
                permit.failed(None);
                return Err(HttpError::Timeout(self.dialer.timeout()));
            }
            Err(_) => {
                // An answer may take long, which says nothing: nobody waits for that.
                permit.give_back();
                let rest = self.timeout.saturating_sub(self.dialer.timeout());
                timeout(rest, answer).await.map_err(|_| HttpError::Timeout(self.timeout))?
            }
        };
        match answered {
            Ok(response) => {
                let well = !permit.endpoint().is_blamed_for(response.status().as_u16());
                permit.answered_otherwise(well);
                Ok(response)
            }
            // Beyond the connection a client's own request may be to blame.
            Err(error) => {
                if error.is_connect() {
                    permit.failed(None);
                }
                Err(HttpError::Unavailable(error.to_string()))
            }
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

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::sleep,
    };

    use super::*;
    use crate::{
        config::{BreakerRules, Secret, UpstreamAuth},
        net::TcpListener,
        telemetry::metrics::Metrics,
    };

    /// Time of a dial: of one that fails, and of one that is to be made.
    const SHORT: Duration = Duration::from_millis(100);
    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(5);
    const KEY: &[u8] = b"session";

    /// An upstream with the operator's credential, and its breaker.
    fn client(
        url: &str,
        dial: Duration,
        failures: u32,
        open: Duration,
    ) -> (Arc<Upstream>, Dialer, HttpClient) {
        let auth = UpstreamAuth::Bearer(Secret::new("operator"));
        let upstream = Arc::new(Upstream {
            name: "up".into(),
            endpoints: vec![Endpoint { auth, ..Endpoint::sole(url.parse().unwrap()) }],
            max_connection_age: Duration::MAX,
            compression: false,
            ca_file: None,
        });
        let rules = BreakerRules { failures, open, max_open: LIMIT };
        let metrics = Metrics::new();
        let dialer = Dialer::new([&upstream], dial, 1024, rules, metrics).unwrap();
        let http = HttpClient::new(&[Arc::clone(&upstream)], &dialer, LIMIT);
        (upstream, dialer, http)
    }

    fn request() -> Request<Body> {
        Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync())
    }

    fn may_be_dialled(dialer: &Dialer, upstream: &Upstream) -> bool {
        dialer.permit(upstream, KEY, None, &[], Instant::now()).is_ok()
    }

    /// Answers each connection's request with this status after `pause`.
    async fn answering(status: u16, pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    drop(socket.read(&mut [0; 4096]).await);
                    sleep(pause).await;
                    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                    drop(socket.write_all(answer.as_bytes()).await);
                });
            }
        });
        url
    }

    #[tokio::test]
    async fn an_endpoint_that_never_ends_a_connection_is_given_up_in_the_time_of_a_dial() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("wss://{}", silent.local_addr().unwrap());
        let (upstream, dialer, http) = client(&url, SHORT, 1, LIMIT);
        let begun = Instant::now();
        let refused = http.forward(&upstream, KEY, request()).await;
        assert!(matches!(refused, Err(HttpError::Timeout(_))), "{refused:?}");
        assert!(begun.elapsed() < LIMIT);
        assert!(!may_be_dialled(&dialer, &upstream));
    }

    #[tokio::test]
    async fn what_another_path_answers_says_nothing_of_where_sessions_go() {
        for status in [200, 403, 404, 429, 503] {
            let url = answering(status, Duration::ZERO).await;
            let (upstream, dialer, http) = client(&url, SECOND, 2, LIMIT);
            for principal in 0..6 {
                let answer = http.forward(&upstream, &[principal], request()).await.unwrap();
                assert_eq!(answer.status(), status, "it is passed on");
            }
            let dial = || dialer.permit(&upstream, KEY, None, &[], Instant::now());
            dial().expect("nothing speaks against it").failed(None);
            drop(http.forward(&upstream, KEY, request()).await.unwrap());
            dial().unwrap().failed(None);
            assert!(!may_be_dialled(&dialer, &upstream), "{status} undid a failed dial");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_answered_slowly_keeps_nobody_from_dialling() {
        let url = answering(200, SECOND * 3).await;
        let (upstream, dialer, http) = client(&url, SECOND, 1, Duration::ZERO);
        dialer.permit(&upstream, KEY, None, &[], Instant::now()).unwrap().failed(None);
        let mut answer = std::pin::pin!(http.forward(&upstream, KEY, request()));
        let dial = async {
            while may_be_dialled(&dialer, &upstream) {
                tokio::task::yield_now().await;
            }
            // The request is the probe now.
            while !may_be_dialled(&dialer, &upstream) {
                sleep(SHORT / 10).await;
            }
        };
        tokio::select! {
            answer = &mut answer => panic!("answered before another could dial: {answer:?}"),
            () = dial => {}
        }
        assert_eq!(answer.await.unwrap().status(), 200);
    }
}
